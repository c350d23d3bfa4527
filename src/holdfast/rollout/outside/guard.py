"""Runs a server for as long as the program that asked for it: `python guard.py COMMAND ...`, started by path.

That program holds the other end of standard input. When it is gone, however it ended, the server is ended too, with
all that it started in its group; otherwise it would keep the port, and answer the next run with old weights.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

PATIENCE = 20.0
"""Seconds that a server may take to end."""


def main(command: list[str]) -> None:
    """Run the command and end as it ends."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the server gets it as well; its end is waited for
    parent = os.getppid()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=follow, args=(server, parent), daemon=True).start()
    code = server.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def follow(server: "subprocess.Popen[bytes]", parent: int) -> None:
    """End the server when nobody wants it any more."""
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
            break
    os.killpg(os.getpgrp(), signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(PATIENCE)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
