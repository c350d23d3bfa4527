"""Tokens per CPU-second of the embedded engine: its own decoder against the model's own forward pass.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--hidden 96] [--layers 3] [--batch 128] [--group 8] [--tokens 76]

Process time, one thread, all variants in turn within each round, the best round of each. No row ends early, so every
variant makes the same number of tokens. Before timing, both decoders must draw the same tokens in float32.
"""

from __future__ import annotations

import argparse
import time

import torch

from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.tasks import get_task

NEVER = -1


def main() -> None:
    """Measure and print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 96), ("layers", 3), ("batch", 128), ("group", 8), ("tokens", 76), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--distributions", action="store_true", help="return full distributions too")
    options = parser.parse_args()
    torch.set_num_threads(1)

    task = get_task("ledger")
    tokenizer = character_tokenizer(task.alphabet)
    model = tiny_model(tokenizer, hidden=options.hidden, layers=options.layers)
    problems = task.problems(0, options.batch // options.group, "train")
    prompts = [tokenizer.encode(problem.prompt) for problem in problems for _ in range(options.group)]
    engines = {
        (precision, fused): EmbeddedEngine(
            model, precision=precision, eos_token_id=NEVER, pad_token_id=tokenizer.pad_token_id, fused=fused
        )
        for precision in ("float32", "int8", "bfloat16")
        for fused in (True, False)
    }

    def generate(engine: EmbeddedEngine) -> list[Completion]:
        sampling = Sampling(max_tokens=options.tokens)
        return engine.generate(
            prompts, sampling, seed=0, sequence_ids=range(len(prompts)), return_distributions=options.distributions
        )

    ours, theirs = ([c.token_ids for c in generate(engines["float32", fused])] for fused in (True, False))
    if ours != theirs:
        raise SystemExit("the decoders disagree: no figure")
    best = dict.fromkeys(engines, 0.0)
    for _ in range(options.rounds):
        for key, engine in engines.items():
            start = time.process_time()
            tokens = sum(len(completion.token_ids) for completion in generate(engine))
            best[key] = max(best[key], tokens / (time.process_time() - start))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(prompts)} rows of {len(prompts[0])} + {options.tokens} tokens")
    for (precision, fused), speed in best.items():
        print(f"{precision:10s} {'own decoder' if fused else 'model forward':14s} {speed:9,.0f} tokens per CPU-second")


if __name__ == "__main__":
    main()
