"""GRPO with trust-region masking in TRL: sums below ten, with reward and data, on a CPU in minutes.

    python examples/trl/grpo_trm.py                       # a small model of random weights, on the CPU
    python examples/trl/grpo_trm.py Qwen/Qwen3-0.6B       # on a GPU, with vLLM as the engine

The small model samples from an int8 copy of itself that is one update behind: what an engine is to a large one. The
masks compare both policies on every sampled token, so the engine has to say what it sampled with: vLLM does through
TRL, and `Rollouts` does so for the engine here.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

import holdfast
from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model

MODEL = "tiny"
HERE = Path(__file__).parent


def closeness(completions: list[str], answer: list[str], **others: Any) -> list[float]:
    """1 for the right number and nothing else, less the further off a number is, 0 for anything else."""
    return [1 - abs(int(text) - int(right)) / 9 if text.strip() in tuple("0123456789") else 0.0
            for text, right in zip(completions, answer, strict=True)]  # fmt: skip


class Rollouts:
    """TRL's rollout function over the embedded engine, with the log-probabilities that it sampled with."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        self.engine, self.tokenizer, self.drawn = EmbeddedEngine(model, precision="int8", lag=1, **ends), tokenizer, 0

    @property
    def policy_version(self) -> int:
        """The optimiser step whose weights the engine samples with."""
        return self.engine.policy_version

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """One completion to each prompt."""
        self.engine.sync(trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step)
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        numbers, self.drawn = range(self.drawn, self.drawn + len(ids)), self.drawn + len(ids)
        sampling = Sampling(max_tokens=trainer.max_completion_length)
        found = self.engine.generate(ids, sampling, seed=0, sequence_ids=numbers)
        return {
            "prompt_ids": ids,
            "completion_ids": [list(completion.token_ids) for completion in found],
            "logprobs": [completion.logprobs.tolist() for completion in found],
        }


def main(name: str) -> None:
    """Train, and leave a model, a log and records for `holdfast audit` in runs/trl_trm."""
    torch.manual_seed(0)
    gpu, engine = torch.cuda.is_available(), {}
    model: Any = name
    if name == "tiny":
        tokenizer = character_tokenizer("0123456789+=")
        tokenizer.padding_side = "left"
        model = tiny_model(tokenizer, hidden=64, layers=2)
        engine = {"rollout_func": Rollouts(model, tokenizer), "processing_class": tokenizer}
    small = name == "tiny"
    trainer = HoldfastGRPOTrainer(
        model=model,
        reward_funcs=closeness,
        args=GRPOConfig(
            output_dir="runs/trl_trm",
            use_vllm=not small,
            use_cpu=small or not gpu,
            bf16=gpu and not small,
            max_steps=150,
            learning_rate=1e-3 if small else 1e-6,
            warmup_steps=10,
            num_generations=8,
            per_device_train_batch_size=64,
            max_completion_length=3 if small else 16,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_json(str(HERE / "sums.jsonl")),
        objective=holdfast.preset("trm+sspo+kl_cov"),
        rollouts_every=10,
        **engine,
    )
    trainer.train()
    trainer.save_model()
    trainer.accelerator.end_training()
    print(f"The log's trust_region/... say what was rejected; holdfast audit {trainer.args.output_dir} says why.")


if __name__ == "__main__":
    main(*sys.argv[1:] or [MODEL])
