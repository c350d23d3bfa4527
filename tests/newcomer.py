"""Plays somebody who has never seen Holdfast: a fresh clone, and every quick start of the README as it stands.

    python tests/newcomer.py                     # installs into the clone (`make newcomer`); downloads torch
    python tests/newcomer.py --python PATH       # takes the packages of a Python that is there, and the clone's code

Lines that want what a laptop does not have are named and left out. Prints each line's time and CPU time, the
installation's apart; exits with 1 where a line does not end as it should.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WANTS = {
    "Qwen/": "downloads a model (make test-trl runs the block with a small one)",
    "verl": "needs verl and GPUs",
    "vllm": "needs vLLM and a model",
    "runs/tonight": "watches until it is stopped",
    "huge_log": "a log that nobody ships",
}
"""What in a line or block tells that it cannot be run here, and why."""
FINDINGS = ("holdfast audit",)
"""Commands that exit with 1 where they found something."""
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def quick_starts(readme: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings and (language, block) pairs of the README's quick starts and of its library section, in order."""
    parts = re.split(r"^## ", readme, flags=re.MULTILINE)[1:]
    wanted = [part for part in parts if part.startswith(("Quick start", "The library"))]
    return [(part.splitlines()[0], BLOCK.findall(part)) for part in wanted]


def lines_of(language: str, block: str) -> list[str]:
    """What is run of a block: a shell line by itself, Python as a whole."""
    return [block] if language == "python" else [line for line in block.splitlines() if line.partition("#")[0].strip()]


def why_not(line: str) -> str | None:
    """Why a line is not run, if it is not."""
    return next((reason for word, reason in WANTS.items() if word in line), None)


def ended_well(line: str, code: int) -> bool:
    """Whether a line ended as the README makes a reader expect."""
    return code == 0 or (code == 1 and line.startswith(FINDINGS))


def environment(clone: Path, python: str | None) -> tuple[dict[str, str], str]:
    """Variables and the Python of the newcomer, who has installed or, with `python`, has the packages already."""
    if python is None:
        subprocess.run(["make", "-s", ".venv/.installed"], cwd=clone, check=True)
        place = clone / ".venv" / "bin"
        return os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}, str(place / "python")
    place = clone / ".newcomer"
    place.mkdir()
    command = place / "holdfast"
    command.write_text(f'#!/bin/sh\nexec {python} -m holdfast "$@"\n')
    command.chmod(0o755)
    path = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(clone / "src")}
    return os.environ | path, python


def cpu_seconds() -> float:
    """CPU time of everything that was started and has ended: beside other jobs a line takes longer than it costs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def play(clone: Path, python: str | None, only: str) -> int:
    """Run everything; 1 where something did not end as it should."""
    begun = time.monotonic()
    variables, interpreter = environment(clone, python)
    print(f"installation: {time.monotonic() - begun:.0f} s")
    failed = 0
    for heading, blocks in quick_starts((clone / "README.md").read_text(encoding="utf-8")):
        if only not in heading:
            continue
        whole = whole_cpu = 0.0
        print(f"\n{heading}")
        for line in (line for language, block in blocks for line in lines_of(language, block)):
            name = line.split("#")[0].strip() if "\n" not in line else f"{line.splitlines()[0]} ..."
            if reason := why_not(line):
                print(f"  not run   {name}: {reason}", flush=True)
                continue
            command = [interpreter if "\n" in line else "sh", "-c", line]
            started, computed = time.monotonic(), cpu_seconds()
            done = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)
            took, computed = time.monotonic() - started, cpu_seconds() - computed
            whole, whole_cpu = whole + took, whole_cpu + computed
            well = ended_well(line, done.returncode)
            print(f"  {'ok' if well else 'FAILED':<7}{took:6.0f} s, {computed:4.0f} of CPU  {name}", flush=True)
            if not well:
                failed = 1
                print(f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
        much = "" if whole < 300 else ", more than five minutes"
        print(f"  all of it: {whole:.0f} s{much}, {whole_cpu:.0f} of CPU")
    return failed


def main() -> int:
    """Clone, play, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="a Python that has the dependencies; without it they are installed")
    parser.add_argument("--only", default="", help="play the sections whose heading has this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        clone = Path(folder) / "holdfast"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
        return play(clone, options.python, options.only)


if __name__ == "__main__":
    sys.exit(main())
