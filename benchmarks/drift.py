"""How far each engine precision is from the trainer, on the engine's own samples and with the same weights.

    python benchmarks/drift.py RUN/warm_start/HASH [--entries 12] [--rows 256]

The folder is any saved model that knows the ledger, such as the warm-started model of a run. The trainer is the float32
model's own forward pass over the whole sequence; KL is KL(engine || trainer), exact over the vocabulary.
"""

from __future__ import annotations

import argparse
from typing import get_args

import torch

from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.embedded.quantize import Precision
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import load_model
from holdfast.tasks import get_task


def main() -> None:
    """Measure and print one table row per precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--entries", type=int, default=12)
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.folder, torch.float32)
    problems = get_task("ledger", entries=options.entries).problems(1, options.rows, "eval")
    prompts = [tokenizer.encode(problem.prompt) for problem in problems]
    sampling = Sampling(max_tokens=6 * options.entries + 20)
    print("| precision | mean abs dlogp | max | exact KL mean | max | accuracy |\n|-|-|-|-|-|-|")
    for precision in get_args(Precision):
        engine = EmbeddedEngine(
            model, precision=precision, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        completions = engine.generate(
            prompts, sampling, seed=0, sequence_ids=range(len(prompts)), return_distributions=True
        )
        task, right = get_task("ledger", entries=options.entries), 0.0
        gaps, divergences = [], []
        for problem, prompt, completion in zip(problems, prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                trainer = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
            own = completion.distributions
            assert own is not None
            drawn = trainer.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
            gaps.append((completion.logprobs - drawn).abs())
            divergences.append((own.exp() * (own - trainer)).sum(dim=-1))
            right += task.reward(problem, tokenizer.decode(completion.token_ids, skip_special_tokens=True))
        gap, divergence = torch.cat(gaps), torch.cat(divergences)
        numbers = (gap.mean(), gap.max(), divergence.mean(), divergence.max(), right / len(problems))
        print(f"| {precision} | " + " | ".join(f"{float(number):.2g}" for number in numbers) + " |")


if __name__ == "__main__":
    main()
