"""Trained tokens per CPU-second of the whole loop, where its time goes, and the same beside TRL's GRPOTrainer.

    OMP_NUM_THREADS=1 python benchmarks/training.py
    OMP_NUM_THREADS=1 python benchmarks/training.py --trl .venv-trl/bin/python --pairs 3    # after `make test-trl`

With --trl, both trainers take turns, each time in a process of their own, on the same model (warm-started with the
task's vocabulary, random with larger ones), prompts, batch, group and response length, on one thread, each in
float32 and with products in bfloat16, ours compiled, too. CPU seconds of the process, medians over steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.tasks import get_task
from holdfast.tasks.base import Problem
from holdfast.tasks.chains import ChainTask
from holdfast.train.keep.folder import RunFolder
from holdfast.train.loop import train
from holdfast.train.settings.configfile import build_config
from holdfast.train.show.display import Quiet
from holdfast.train.warmstart import cached_warm_start

SHAPES: dict[str, dict[str, Any]] = {
    "1.2 M, 4 x 8, 64 tokens, float32 engine": {
        "model": {"hidden": 152, "layers": 4, "heads": 4},
        "batch": {"prompts": 4, "group_size": 8},
        "engine": {"precision": "float32", "exact_kl": False},
        "sampling": {"max_tokens": 64},
    },
    "demo: 0.36 M, 16 x 8, int8 engine two updates behind, exact KL": {
        "model": {"hidden": 96, "layers": 3, "heads": 4},
        "batch": {"prompts": 16, "group_size": 8},
        "engine": {"precision": "int8", "lag": 2},
        "sampling": {"max_tokens": 64},
    },
}
STILL = {"optimizer": {"learning_rate": 1e-8}}
"""For the comparison: a coin flip teaches nothing but to write other lengths, and both are to write the same."""
PARTS = ("generate", "old_logprobs", "update", "reward", "other")


@dataclass(frozen=True)
class Setting:
    """What is trained beside TRL: vocabulary (None: the task's, warm-started; else random weights), length, chains.

    `examples` are solved before the question is asked, 101 tokens each with the default chains.
    """

    vocabulary: int | None
    tokens: int
    entries: int = 12
    examples: int = 0

    def __str__(self) -> str:
        prompt = 2 * self.entries + 1 + self.examples * (8 * self.entries + 5)
        return f"vocabulary of {self.vocabulary or 30}, prompts of {prompt} and responses of {self.tokens} tokens"


BESIDE_TRL = (
    Setting(None, 64),
    Setting(None, 128, entries=26),
    Setting(512, 64, examples=2),
    Setting(512, 256),
    Setting(32768, 64),
)
COMPILED: dict[str, dict[str, Any]] = {"model": {"compile": True}, "engine": {"compile": True}}
NARROW = {"model": {"compile": True, "autocast": True}, "engine": {"compile": True, "precision": "bfloat16"}}
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {},
    "ours, compiled": COMPILED,
    "ours, compiled, bfloat16": NARROW,
}
PEERS = {"TRL": [], "TRL, bfloat16": ["bf16"]}


def settings(shape: dict[str, Any], steps: int, preset: str) -> dict[str, Any]:
    """A run that does nothing but train; a short warm start gives responses the length of the task's chains."""
    return {
        "steps": steps,
        "task": {"name": "ledger", "entries": 12},
        "objective": {"preset": preset},
        "warm_start": {"clean_steps": 100, "batch_size": 16},
        "evaluation": {"every": 0, "problems": 1, "greedy": False},
        "log": {"rollouts_every": 0},
        "checkpoint": {"every": 0},
        **shape,
    }


def parity(task: ChainTask, problem: Problem, response: str) -> float:
    """A coin flip: chains cut off at 64 tokens all fail, and groups with equal rewards need no backward pass."""
    return float(sum(map(ord, response)) % 2)


@contextmanager
def solved_before(examples: int) -> Iterator[None]:
    """Prompts of chain tasks begin with so many other prompts and their solutions, the same ones every time."""
    plain = ChainTask.problems

    def problems(task: ChainTask, seed: int, count: int, split: str) -> list[Problem]:
        shown = "".join(f"{other.prompt}{other.solution}=" for other in plain(task, 0, examples, "train"))
        return [replace(problem, prompt=shown + problem.prompt) for problem in plain(task, seed, count, split)]

    with patch.object(ChainTask, "problems", problems):
        yield


def measure(shape: dict[str, Any], steps: int, preset: str, warm_starts: Path, examples: int = 0) -> dict[str, Any]:
    """Medians over the steps; the first two and the last, which evaluates, are left out."""
    config = build_config(settings(shape, steps, preset))
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run", config)
        with patch.object(ChainTask, "reward", parity), solved_before(examples):
            summary = train(config, run, display=Quiet(), warm_starts=warm_starts)
        records = run.read_metrics()[3:-1]
    return {
        "tokens_per_cpu_second": statistics.median(record["tokens_per_cpu_second"] for record in records),
        "tokens_per_step": statistics.median(record["tokens"] for record in records),
        "parameters": summary["parameters"],
        "split": {p: statistics.median(r["time_split"].get(p, 0.0) / r["seconds"] for r in records) for p in PARTS},
    }


def show_shapes(steps: int) -> None:
    """Print two lines per shape."""
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(shape, steps, "ppo", Path(folder))
        shares = ", ".join(f"{part} {share:.0%}" for part, share in found["split"].items())
        print(f"{name} ({found['parameters']:,} parameters, {found['tokens_per_step']:.0f} tokens a step)")
        print(f"  {found['tokens_per_cpu_second']:.0f} trained tokens per CPU-second; {shares}")


def compare(python: str, steps: int, pairs: int) -> None:
    """Take turns with TRL; print all, and the ratios to the faster of TRL's two precisions."""
    for setting in BESIDE_TRL:
        print(setting, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            speeds = _take_turns(python, steps, pairs, Path(folder), setting)
        best = max((speeds[who] for who in PEERS), key=statistics.median)
        for who in OURS:
            ratios = [own / peer for own, peer in zip(speeds[who], best, strict=True)]
            listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"  {who}: {statistics.median(ratios):.2f} times TRL ({listed})", flush=True)


def _take_turns(python: str, steps: int, pairs: int, folder: Path, setting: Setting) -> dict[str, list[float]]:
    shape: dict[str, Any] = next(iter(SHAPES.values())) | STILL | {"sampling": {"max_tokens": setting.tokens}}
    shape["task"] = {"name": "ledger", "entries": setting.entries}
    task = get_task(**shape["task"])
    if setting.vocabulary is not None:
        write_model(folder / "wide", task.alphabet, setting.vocabulary, shape["model"])
        shape |= {"model": {"source": str(folder / "wide")}, "warm_start": {"clean_steps": 0}}
    (folder / "shape.json").write_text(json.dumps(shape))
    config = build_config(settings(shape, steps, "grpo"))
    if setting.vocabulary is None:
        measure(shape, 4, "grpo", folder)  # makes the warm-started model
    model = shape["model"].get("source") or str(cached_warm_start(folder, config))
    with solved_before(setting.examples):
        texts = [problem.prompt for problem in task.problems(0, shape["batch"]["prompts"] * (steps + 2), "train")]
    same = {**shape["batch"], **shape["sampling"], "learning_rate": config.optimizer.learning_rate, "texts": texts}
    (folder / "prompts.json").write_text(json.dumps(same))
    own = [sys.executable, __file__, "--steps", str(steps), "--measure", str(folder)]
    own += ["--examples", str(setting.examples)]
    peer = [python, str(Path(__file__).with_name("training_trl.py")), model, str(folder / "prompts.json"), str(steps)]
    commands = {who: [*own, "--variant", who] for who in OURS} | {who: [*peer, *words] for who, words in PEERS.items()}
    speeds: dict[str, list[float]] = {who: [] for who in commands}
    for _ in range(pairs):
        for who, command in commands.items():
            found = json.loads(_last_line(command))
            speeds[who].append(found["tokens_per_cpu_second"])
            print(f"  {who:24} {_words(found)}", flush=True)
    return speeds


def write_model(folder: Path, alphabet: str, vocabulary: int, sizes: dict[str, int]) -> None:
    """A model of random weights whose vocabulary is filled up with words that no prompt has."""
    tokenizer = character_tokenizer(alphabet)
    tokenizer.add_tokens([f"<word {number}>" for number in range(vocabulary - len(tokenizer))])
    tiny_model(tokenizer, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _last_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def _words(found: dict[str, Any]) -> str:
    speed, tokens = found["tokens_per_cpu_second"], found["tokens_per_step"]
    generation = found["split"]["generate"] if "split" in found else found["generation_share"]
    return f"{speed:.0f} tokens per CPU-second, {tokens:.0f} tokens a step, generation {generation:.0%}"


def main() -> None:
    """Print the shapes, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", metavar="PYTHON", help="an interpreter that has TRL 1.16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--variant", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        shape = json.loads((options.measure / "shape.json").read_text())
        for section, values in OURS[options.variant].items():
            shape[section] |= values
        print(json.dumps(measure(shape, options.steps, "grpo", options.measure, options.examples)))
    elif options.trl:
        compare(options.trl, options.steps, options.pairs)
    else:
        show_shapes(options.steps)


if __name__ == "__main__":
    main()
