"""One run, to be started with one process or, by accelerate, with two: python two_ranks.py FOLDER SIZE OBJECTIVE.

The completions are a function of the prompt and the number in its group, so that every world samples the same ones.
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules.setdefault("vllm", None)  # pyright: ignore[reportArgumentType]
warnings.simplefilter("ignore")
torch.set_num_threads(1)

import holdfast  # noqa: E402
from holdfast.integrations.trl import HoldfastGRPOTrainer  # noqa: E402
from integrations.trl import runs  # noqa: E402
from integrations.trl.test_whole_step import EVERYTHING  # noqa: E402


class Played(HoldfastGRPOTrainer):
    """Completions of 2 to 7 tokens with log-probabilities off by up to .3 from the uniform ones, from a seed each."""

    def _generate_single_turn(self, prompt_ids, *others, **options):
        first = self.accelerator.process_index * len(prompt_ids)
        completions, logprobs = [], []
        for number, prompt in enumerate(prompt_ids, start=first):
            draw = torch.Generator().manual_seed(sum(prompt) * 10 + number % self.num_generations)
            length = int(torch.randint(2, 7, (), generator=draw))
            completions.append([*torch.randint(4, 14, (length,), generator=draw).tolist(), 2])
            off = 0.6 * torch.rand(length + 1, generator=draw) - 0.3
            logprobs.append((off - torch.tensor(len(runs.TOKENIZER)).log()).tolist())
        return completions, logprobs


def main(folder: str, size: int, objective: str) -> None:
    """Two optimiser steps on the same eight sequences; the gradients go to FOLDER/gradients.pt."""
    seen = runs.Gradients()
    settings = {
        "per_device_train_batch_size": size,
        "num_iterations": 2,
        "max_steps": 2,
        "shuffle_dataset": False,
    }
    chosen = EVERYTHING if objective == "everything" else holdfast.preset(objective)
    trainer = Played(
        runs.model(),
        runs.small_digits,
        runs.config(folder, **settings),
        runs.PROMPTS,
        processing_class=runs.TOKENIZER,
        callbacks=[seen],
        objective=chosen,
    )
    trainer.use_vllm = True
    trainer.train()
    if trainer.accelerator.is_main_process:
        names = (
            "loss",
            "entropy",
            "trust_region/rejected_tokens",
            "trust_region/rollout_k2_max",
            "trust_region/rejected_sequences_length_q4",
        )
        logs = {name: runs.logged(trainer, name) for name in names}
        torch.save({"gradients": seen.steps, "logs": logs}, Path(folder) / "gradients.pt")
    # A rank that exits with Gloo's threads at work may abort, after all it had to do is done.
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
