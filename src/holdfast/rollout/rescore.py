"""Whether an engine samples from the policy that it claims: its first responses, scored again by the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.divergences import k3
from holdfast.errors import EngineError
from holdfast.rollout.engine import Completion, Sampling, sampling_logprobs

LIMITS = {"float32": 0.02, "bfloat16": 0.15, "float16": 0.15}
"""Mean |Δ log p| per token in nats that an engine of these numerics stays below (docs/engines.md has measured ones)."""

QUANTIZED_LIMIT = 0.5
"""The same for every coarser one."""

EXPLAINED = 0.25
"""A wrong reading of the engine's numbers is named where it brings the mean |Δ log p| down to this share."""

NOISE = 0.01
"""Mean |Δ log p| below which there is nothing to explain."""

_SUSPECTS = {
    "earlier": "each log-probability belongs to the token before it: shift them by one",
    "later": "each log-probability belongs to the token after it: shift them by one",
    "raw": "the log-probabilities are those before temperature and truncation: have the engine report what it sampled "
    "with (vLLM: --logprobs-mode processed_logprobs)",
    "zero": "all log-probabilities are 0: the engine gives none",
    "likeliest": "the log-probabilities are those of the likeliest tokens, not of the sampled ones",
}
# A few tokens on which two honest policies differ much may look like "likeliest": it explains, but proves nothing.
_PROOFS = ("earlier", "later", "raw", "zero")


@dataclass(frozen=True)
class Agreement:
    """How far the engine's log-probabilities of its own tokens are from the trainer's, in nats per token.

    `mean_abs` and `max_abs` are of |log q - log p|, q the trainer, p the engine; `k3` estimates KL(p‖q);
    `correlation` is that of log p and log q. `suspects` are the mean differences under wrong readings of the numbers.
    """

    tokens: int
    mean_abs: float
    max_abs: float
    k3: float
    correlation: float
    suspects: Mapping[str, float] = field(default_factory=dict)

    def reading(self, suspects: Iterable[str]) -> str | None:
        """The one of these wrong readings under which the numbers do fit."""
        name = min(suspects, key=lambda suspect: self.suspects.get(suspect, math.inf))
        fits = self.suspects.get(name, math.inf) <= EXPLAINED * self.mean_abs
        return name if fits and self.mean_abs > NOISE else None

    def __str__(self) -> str:
        return (
            f"mean |Δ log p| {self.mean_abs:.3g}, largest {self.max_abs:.3g}, k3 {self.k3:.3g} nat per token, "
            f"correlation {self.correlation:.2f}, over {self.tokens} tokens"
        )


@torch.no_grad()
def rescore(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    sampling: Sampling,
    *,
    sequences: int = 16,
    tokens: int = 256,
) -> Agreement:
    """Score the first tokens of the first sequences again, one plain forward pass of `model` each.

    Tokens that are off the trainer's own support (the edge of top-p is not where the engine has it) are compared
    without truncation. Greedy responses are certain on both sides and say nothing.

    Raises:
        EngineError: a token that the trainer's model does not have.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    pairs = []
    for prompt, completion in list(zip(prompts, completions, strict=True))[:sequences]:
        drawn = completion.token_ids[:tokens]
        if max(drawn) >= vocabulary:
            raise EngineError(
                f"the engine sampled token {max(drawn)}, the trainer's model has {vocabulary}: they do not run the "
                "same model; start the engine on the trainer's model folder"
            )
        ids = torch.tensor([[*prompt, *drawn]], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(drawn) + 1).logits[0, :-1].float().cpu()
        pairs.append((completion.logprobs[: len(drawn)].float().cpu(), _readings(logits, drawn, sampling)))
    return _agreement(pairs, sampling)


def check_engine(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    sampling: Sampling,
    *,
    precision: str | None = None,
) -> Agreement:
    """How well engine and trainer agree, for the first batch under weights that both are meant to have.

    `precision` is what the engine computes in: it says how large a difference may be numerics. None: not known.

    Raises:
        EngineError: a mean |Δ log p| above what such numerics explain, numbers that only fit when they are read
            differently, or no relation between the two at all; with the figures.
    """
    limit = LIMITS.get(precision or "", QUANTIZED_LIMIT)
    found = rescore(model, prompts, completions, sampling)
    unrelated = found.tokens >= 64 and found.mean_abs > 5 * NOISE and found.correlation < 0.5
    if found.mean_abs <= limit and not unrelated and not found.reading(_PROOFS):
        return found
    reading = found.reading(_SUSPECTS)
    cause = (
        "the engine runs other weights or another vocabulary than the trainer, or scrambles what it reports; start it "
        "on the trainer's model folder, sync it before the first batch, or set engine.precision to what it computes in"
        if reading is None
        else f"{_SUSPECTS[reading]} (the mean would be {found.suspects[reading]:.2g})"
    )
    claimed = precision or "unknown precision"
    raise EngineError(
        f"the engine's log-probabilities are not those of the policy: scored again by the trainer's model, {found} "
        f"(up to {limit:g} may be the numerics of an engine in {claimed}). {cause[0].upper()}{cause[1:]}"
    )


def _readings(logits: Float[Tensor, "T V"], drawn: Sequence[int], sampling: Sampling) -> dict[str, Float[Tensor, " T"]]:
    """What the trainer's model says about the tokens, and what it would say if the engine reported something else."""
    chosen = torch.tensor(drawn)[:, None]
    supported = sampling_logprobs(logits, sampling)
    raw = logits.log_softmax(-1)
    whole = raw if sampling.temperature in (0, 1) else (logits / sampling.temperature).log_softmax(-1)
    own = supported.gather(1, chosen)[:, 0]
    return {
        "own": torch.where(own.isfinite(), own, whole.gather(1, chosen)[:, 0]),
        "raw": raw.gather(1, chosen)[:, 0],
        "likeliest": supported.amax(-1),
    }


def _agreement(pairs: Sequence[tuple[Tensor, dict[str, Tensor]]], sampling: Sampling) -> Agreement:
    engine = torch.cat([logprobs for logprobs, _ in pairs])
    own = torch.cat([readings["own"] for _, readings in pairs])
    gap = (own - engine).abs()
    suspects = {}
    if sampling.temperature != 0:
        names = ["likeliest"] + ["raw"] * (sampling.temperature != 1 or sampling.truncates)
        suspects = {name: _mean_gap([(p, read[name]) for p, read in pairs]) for name in names}
        suspects["earlier"] = _mean_gap([(p[1:], read["own"][:-1]) for p, read in pairs])
        suspects["later"] = _mean_gap([(p[:-1], read["own"][1:]) for p, read in pairs])
        if not bool(engine.any()):
            suspects["zero"] = 0.0
    spread = torch.stack([engine, own])
    return Agreement(
        tokens=len(engine),
        mean_abs=float(gap.mean()),
        max_abs=float(gap.max()),
        k3=float(k3((own - engine).clamp(-20, 20)).value.mean()),
        correlation=float(torch.corrcoef(spread)[0, 1].nan_to_num(0.0)) if len(engine) > 1 else 0.0,
        suspects=suspects,
    )


def _mean_gap(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean |a - b| over all tokens; infinite where there are none."""
    gaps = torch.cat([(a - b).abs() for a, b in pairs])
    return float(gaps.mean()) if len(gaps) else math.inf
