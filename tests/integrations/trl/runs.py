"""Small real TRL runs: a Qwen3 over characters, sums as prompts, and an engine that is not the trainer."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model

TOKENIZER = character_tokenizer("0123456789+=")
TOKENIZER.padding_side = "left"
PROMPTS = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(4) for b in range(4)])


def small_digits(completions: list[str], **others: Any) -> list[float]:
    """The share of characters below 5."""
    return [sum(character in "01234" for character in text) / 8 for text in completions]


def model(seed: int = 0, **settings: Any) -> Any:
    """A two-layer Qwen3."""
    return tiny_model(TOKENIZER, **({"hidden": 32, "layers": 2, "heads": 2} | settings), seed=seed)


def config(folder: Any, **settings: Any) -> GRPOConfig:
    """Eight sequences a generation in groups of four, on the CPU, without anything that is not under test."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**(defaults | settings))


class Gradients(TrainerCallback):
    """The gradient of every optimiser step as one vector; the runs here do not clip it."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        gradients = [p.grad.flatten() for p in others["model"].parameters() if p.grad is not None]
        self.steps.append(torch.cat(gradients).clone())


class FromEngine:
    """Mixed into a GRPOTrainer: samples from `self.engine`, one update old and in int8, as if that were vLLM."""

    engine: EmbeddedEngine
    seen: int = 0

    def _generate_single_turn(self, prompt_ids: Any, *others: Any, **options: Any) -> Any:
        trainer: Any = self
        trainer.engine.sync(trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step)
        sampling = Sampling(max_tokens=trainer.max_completion_length)
        ids = list(range(self.seen, self.seen + len(prompt_ids)))
        self.seen += len(prompt_ids)
        completions = trainer.engine.generate(prompt_ids, sampling, seed=0, sequence_ids=ids)
        return [list(c.token_ids) for c in completions], [c.logprobs.tolist() for c in completions]


class Mismatched(FromEngine, HoldfastGRPOTrainer):
    """The plug-in over that engine."""


class MismatchedTrl(FromEngine, GRPOTrainer):
    """TRL's own loss over that engine."""


def mismatched(
    kind: Any,
    folder: Any,
    *,
    precision: str = "int8",
    lag: int = 1,
    base: Any = None,
    settings: Any = None,
    **options: Any,
) -> Any:
    """A trainer on TRL's vLLM path, fed by the embedded engine."""
    base = base or model()
    trainer = kind(base, small_digits, config(folder, **settings or {}), PROMPTS, processing_class=TOKENIZER, **options)
    trainer.engine = EmbeddedEngine(
        base, precision=precision, lag=lag, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id
    )
    trainer.use_vllm = True
    return trainer


def recorded(folder: Any) -> Path:
    """The records of the only run in this output folder."""
    (run,) = (Path(folder) / "_rollouts").iterdir()
    return run


def logged(trainer: Any, name: str) -> list[float]:
    """One number of every logged step."""
    return [record[name] for record in trainer.state.log_history if name in record]
