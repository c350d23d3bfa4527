"""Real `main_ppo` runs on a CPU, each made once per test session."""

import json
import subprocess
import sys
from pathlib import Path

from integrations.verl.cpu import world

EPOCHS = ("actor_rollout_ref.actor.ppo_epochs=3", "actor_rollout_ref.actor.optim.lr=5e-3")
"""Three updates per batch let a clip act; one mini-batch each, since the order of rows is random in verl."""


class Run:
    """A finished run: the metrics of each step, its log and its folder."""

    def __init__(self, folder: Path, code: int) -> None:
        self.folder, self.code = folder, code
        self.log = (folder / "log").read_text(errors="replace")
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self.steps = [json.loads(line)["data"] for line in lines]

    def column(self, name: str) -> list[float]:
        assert self.code == 0, self.log[-3000:]
        return [step[name] for step in self.steps]


def start(base: Path, name: str, steps: int, *overrides: str, ranks: int = 1, micro: int = 4, **variables: str) -> Run:
    """Run verl's trainer for some steps; the world is built on first use."""
    toy, folder = base / "world", base / name
    folder.mkdir()
    if not toy.exists():
        world.build(toy)
    environment = world.environment(VERL_FILE_LOGGER_PATH=str(folder / "metrics.jsonl"), **variables)
    arguments = [*world.overrides(toy, folder, steps, ranks, micro), *overrides]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
    for _ in range(5):
        with (folder / "log").open("w") as log:
            done = subprocess.run(
                command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, timeout=1800, check=False
            )
        # Ray gives its own processes 30 seconds to start, which a busy machine may not.
        if "The current node timed out during startup" not in (folder / "log").read_text(errors="replace"):
            break
    return Run(folder, done.returncode)
