"""Builds the wheel and tries it in a clean environment without extras: python tests/wheel.py FOLDER.

What needs no extra has to work, what needs one has to name it. `make wheel` runs this; it downloads torch.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOG = [
    {"prompt_ids": [1], "response_ids": list(range(20)), "rollout_logprobs": [-0.5] * 20, "logprobs": [-0.5] * 20}
]  # fmt: skip
WORK = (
    (["--help"], 0, "holdfast COMMAND"),
    (["--version"], 0, "holdfast 0."),
    (["bounds", "--horizon", "4096", "--kl", "1e-4"], 0, "4096"),
    (["presets", "trm"], 0, "trm"),
    (["advise", "run.toml", "--engine.lag", "8"], 1, 'denominator = "rollout"'),
    (["audit", "log.jsonl", "--map", "trainer_logprobs=logprobs", "--json"], 1, "dead_clip"),
    (["train", "run.toml"], 2, "holdfast-rl[train]"),
    (["demo"], 2, "holdfast-rl[train]"),
)
"""Arguments, exit code, and a word that is said."""


def run(*command: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """With its output."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def main(folder: Path) -> int:
    """0 where everything is as it should be."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT))
    if built.returncode:
        print(built.stderr)
        return 1
    wheel = max(folder.glob("holdfast_rl-*.whl"), key=lambda path: path.stat().st_mtime)
    environment = folder / "clean"
    venv.create(environment, with_pip=True, clear=True)
    python, constraints = str(environment / "bin" / "python"), str(ROOT / "constraints.txt")
    torch = next(line for line in Path(constraints).read_text().splitlines() if line.startswith("torch=="))
    installed = run(python, "-m", "pip", "install", "--quiet", "-c", constraints, torch.partition("+")[0], str(wheel))
    if installed.returncode:
        print(installed.stderr)
        return 1
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG * 3))
    (folder / "run.toml").write_text("steps = 1\n")
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    wrong = 0
    for arguments, code, word in WORK:
        done = run(str(environment / "bin" / "holdfast"), *arguments, cwd=folder, env=bare)
        said = done.stdout + done.stderr
        good = done.returncode == code and word in said and "Traceback" not in said
        print(f"{'ok   ' if good else 'WRONG'} holdfast {' '.join(arguments)}: exit {done.returncode}")
        if not good:
            print(said)
        wrong += not good
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
