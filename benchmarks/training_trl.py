"""TRL's GRPOTrainer on a model folder and a file of prompts: one JSON line with what a step cost.

    .venv-trl/bin/python benchmarks/training_trl.py MODEL PROMPTS.json STEPS [bf16] [torch_compile]

Started by benchmarks/training.py. No recomputation of activations and no reference model, which is fastest; float32
unless bf16 is given; its fused head is what this version always uses.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main(folder: str, prompts: str, steps: int, *switches: str) -> None:
    """Train and report; the first two steps are left out."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    settings = json.loads(Path(prompts).read_text())
    tokens: list[int] = []
    generating = [0.0]
    marks: list[tuple[float, float]] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(sum(map(ord, text)) % 2) for text in completions]

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append((time.process_time(), generating[0]))

    class Timed(GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            found = super()._generate(*args, **kwargs)
            generating[0] += time.process_time() - started
            return found

    with TemporaryDirectory() as out:
        trainer = Timed(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=settings["prompts"] * settings["group_size"],
                num_generations=settings["group_size"],
                max_completion_length=settings["max_tokens"],
                max_steps=steps,
                learning_rate=settings["learning_rate"],
                loss_type="grpo",
                beta=0.0,
                temperature=1.0,
                **{"bf16": False} | dict.fromkeys(switches, True),
                gradient_checkpointing=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_dict({"prompt": settings["texts"]}),
            callbacks=[Clock()],
        )
        trainer.train()
    pairs = list(pairwise(marks[1:]))
    spent = [after[0] - before[0] for before, after in pairs]
    shares = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs]
    speeds = [count / seconds for count, seconds in zip(tokens[2:], spent, strict=False)]
    report = {
        "tokens_per_cpu_second": statistics.median(speeds),
        "generation_share": statistics.median(shares),
        "tokens_per_step": statistics.median(tokens[2:]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
