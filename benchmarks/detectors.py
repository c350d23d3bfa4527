"""TRM with exact, top-K and sampled detectors on the same rollouts of vLLM: how often their verdicts differ.

    .venv-vllm/bin/python benchmarks/detectors.py [--folder MODEL] [--updates 4] [--rows 256] [--entries 12]

The engine runs in bfloat16, the trainer in float32 and `--updates` AdamW updates ahead of it (policy gradient of random
advantages). Without a folder: a random Qwen3 (7.2 M parameters, vocabulary 2048) with a sharp head.
A folder must know the ledger, and its heads must be of a size that vLLM's attention has (32, 64, ...).
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor

from holdfast.core.divergences import exact_from_logits, top_k
from holdfast.objectives.parts.masks import TrmAvg, TrmMax
from holdfast.objectives.parts.terms import Detector, Terms
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.models import load_model
from holdfast.rollout.outside.vllm import VllmEngine
from holdfast.tasks import get_task
from holdfast.types import Batch, TokenStats

TOP = 20
DETECTORS: tuple[Detector, ...] = ("kl_exact", "kl_lower", "k2", "k3")


def main() -> None:
    """Sample once, measure the drift, and print a table row per mask, threshold and detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--entries", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=96)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or made
        if options.folder is None:
            random_model().save_pretrained(made)
        model, prompts, end = load(folder, options)
        engine = VllmEngine(folder, eos_token_id=end, precision="bfloat16", context=1024, cache_gib=0.5)
    ids = range(len(prompts))
    sampling = Sampling(max_tokens=options.max_tokens)
    completions = engine.generate(
        prompts, sampling, seed=0, sequence_ids=ids, return_distributions=True, return_top=TOP
    )
    engine.close()
    update(model, prompts, completions, options)
    batch, stats = measure(model, prompts, completions)
    describe(batch, stats)
    print("| mask | δ | detector | keeps | rejects what exact keeps | keeps what exact rejects |\n|-|-|-|-|-|-|")
    terms = Terms.of(batch, stats)
    for kind, delta in ((TrmMax, 0.05), (TrmAvg, 0.001)):
        compare(kind, terms, dict.fromkeys(DETECTORS, delta))
        compare(kind, terms, {detector: quartile(kind, terms, detector) for detector in DETECTORS})


def random_model() -> Any:
    """Far from certain of anything, with a few likely tokens per position, as a language model has."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=2,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.mul_(16)
    return model


def load(folder: str, options: argparse.Namespace) -> tuple[Any, list[list[int]], int]:
    """The trainer, prompts, and the end token."""
    if options.folder is None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), torch.randint(3, 2048, (options.rows, 16)).tolist(), 2
    model, tokenizer = load_model(folder, torch.float32)
    problems = get_task("ledger", entries=options.entries).problems(1, options.rows, "eval")
    return model.eval(), [tokenizer.encode(problem.prompt) for problem in problems], tokenizer.eos_token_id


def logits_of(model: Any, prompt: list[int], completion: Completion) -> Tensor:
    """Logits that predict each response token."""
    return model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1].float()


def update(model: Any, prompts: list[list[int]], completions: list[Completion], options: argparse.Namespace) -> None:
    """Move the trainer ahead: each update is a policy gradient over 16 of the responses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    for step in range(options.updates):
        optimizer.zero_grad()
        for row in range(16 * step, 16 * step + 16):
            prompt, completion = prompts[row % len(prompts)], completions[row % len(prompts)]
            drawn = logits_of(model, prompt, completion).log_softmax(-1)
            advantage = 1.0 if torch.rand(()) < 0.5 else -1.0
            (-advantage * drawn.gather(1, torch.tensor(completion.token_ids)[:, None]).mean() / 16).backward()
        optimizer.step()


@torch.no_grad()
def measure(model: Any, prompts: list[list[int]], completions: list[Completion]) -> tuple[Batch, TokenStats]:
    """Sampled log-probabilities of both sides, exact divergences and bounds from the top-K."""
    columns: dict[str, list[Tensor]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = logits_of(model, prompt, completion)
        drawn = logits.log_softmax(-1)
        assert completion.distributions is not None and completion.top_ids is not None
        assert completion.top_logprobs is not None
        exact = exact_from_logits(logits, completion.distributions)
        bounds = top_k(drawn.gather(1, completion.top_ids), completion.top_logprobs)
        found = {
            "logprobs": drawn.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0],
            "rollout_logprobs": completion.logprobs,
            "kl_rollout": exact.kl.value,
            "tv_rollout": exact.tv.value,
            "kl_rollout_lower": bounds.kl_lower.value,
            "tv_rollout_lower": bounds.tv_lower.value,
            "tv_rollout_upper": bounds.tv_upper.value,
        }
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    dense = {name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True) for name, values in columns.items()}
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    rollout = dense.pop("rollout_logprobs")
    return Batch(advantages=torch.ones(len(lengths)), response_mask=mask, rollout_logprobs=rollout), TokenStats(**dense)


def describe(batch: Batch, stats: TokenStats) -> None:
    """The drift, and how tight the interval of TV is."""
    mask = batch.response_mask
    assert batch.rollout_logprobs is not None
    gap = (stats.logprobs - batch.rollout_logprobs).abs()[mask]
    kl, low = stats.kl_rollout[mask], stats.kl_rollout_lower[mask]  # pyright: ignore[reportOptionalSubscript]
    tv, lower, upper = (x[mask] for x in (stats.tv_rollout, stats.tv_rollout_lower, stats.tv_rollout_upper))  # pyright: ignore[reportOptionalSubscript]
    print(f"{mask.shape[0]} sequences, {int(mask.sum())} tokens; mean |dlogp| {gap.mean():.3g}, max {gap.max():.3g}")
    print(f"KL mean {kl.mean():.3g}, max {kl.max():.3g}; top-{TOP} lower bound mean {low.mean():.3g}")
    print(f"TV mean {tv.mean():.3g}; top-{TOP} interval mean [{lower.mean():.3g}, {upper.mean():.3g}]")
    outside = (tv < lower - 1e-5) | (tv > upper + 1e-5)
    print(f"tokens whose exact TV is outside its interval: {int(outside.sum())}\n")


def quartile(kind: type, terms: Terms, detector: Detector) -> float:
    """The threshold at which a detector rejects a quarter of the sequences."""
    drift = terms.divergence(detector, "rollout")
    pooled = drift.amax(1) if kind is TrmMax else drift.sum(1) / terms.mask.sum(1)
    return float(f"{pooled.quantile(0.75):.3g}")


def compare(kind: type, terms: Terms, deltas: dict[Detector, float]) -> None:
    """A row per detector, each compared with the verdict of the exact one."""
    exact = kind(deltas["kl_exact"], "kl_exact").keep(terms, None).flatten()
    for detector, delta in deltas.items():
        kept = kind(delta, detector).keep(terms, None).flatten()
        shares = " | ".join(f"{part.float().mean():.3f}" for part in (kept, exact & ~kept, kept & ~exact))
        print(f"| {kind.__name__} | {delta:g} | {detector} | {shares} |")


if __name__ == "__main__":
    main()
