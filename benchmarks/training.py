"""Trained tokens per CPU-second of the whole loop, and where its time goes.

    OMP_NUM_THREADS=1 python benchmarks/training.py

The first shape is that of a figure known for a peer: TRL 1.16's GRPO on a CPU reaches 1503 trained tokens per
CPU-second at 1.19 M parameters, batch 4 x 8, up to 64 new tokens, float32, one thread (its own measurement, another
machine state: compare orders, not percents). A short warm start gives responses the length of the task's chains.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from holdfast.train.configfile import build_config
from holdfast.train.display import Quiet
from holdfast.train.folder import RunFolder
from holdfast.train.loop import train

SHAPES = {
    "1.19 M, 4 x 8, 64 tokens, float32 engine": {
        "model": {"hidden": 152, "layers": 4, "heads": 4},
        "batch": {"prompts": 4, "group_size": 8},
        "engine": {"precision": "float32", "exact_kl": False},
        "sampling": {"max_tokens": 64},
    },
    "demo: 0.34 M, 16 x 8, int8 engine two updates behind, exact KL": {
        "model": {"hidden": 96, "layers": 3, "heads": 4},
        "batch": {"prompts": 16, "group_size": 8},
        "engine": {"precision": "int8", "lag": 2},
        "sampling": {"max_tokens": 64},
    },
}


def main(steps: int = 8) -> None:
    """Print one line per shape; medians over steps, the first left out."""
    for name, shape in SHAPES.items():
        config = build_config(
            {
                "steps": steps,
                "task": {"name": "ledger", "entries": 12},
                "objective": {"preset": "ppo"},
                "warm_start": {"clean_steps": 100, "batch_size": 16},
                "evaluation": {"every": 0, "problems": 1, "greedy": False},
                "log": {"rollouts_every": 0},
                "checkpoint": {"every": 0},
                **shape,
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder.create(Path(folder) / "run", config)
            summary = train(config, run, display=Quiet())
            records = run.read_metrics()[2:-1]
        speed = statistics.median(record["tokens_per_cpu_second"] for record in records)
        length = statistics.median(record["response_length_mean"] for record in records)
        split = {
            part: statistics.median(record["time_split"][part] / record["seconds"] for record in records)
            for part in ("generate", "old_logprobs", "update", "other")
        }
        shares = ", ".join(f"{part} {share:.0%}" for part, share in split.items())
        print(f"{name} ({summary['parameters']:,} parameters, {length:.0f} tokens a response)")
        print(f"  {speed:.0f} trained tokens per CPU-second; {shares}")


if __name__ == "__main__":
    main()
