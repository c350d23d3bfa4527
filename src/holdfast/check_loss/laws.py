"""The laws that hold for one call of a policy loss; each gives a `Finding` that says what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.check_loss.cases import Case, Loss, evaluate, make_case, on_policy, policy_gradient, same, whole
from holdfast.errors import DataError
from holdfast.types import Batch

SMALL = 1e-5
"""Relative error from which a law is broken: losses may compute in float32."""


@dataclass(frozen=True)
class Finding:
    """What one law's trial showed; `note` is for what breaks nothing but should be known."""

    law: str
    status: Literal["holds", "broken", "note", "not judged"]
    says: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Divisor:
    """What a loss divides its sum by, with the factor that is left over."""

    name: str
    factor: float

    def __str__(self) -> str:
        return self.name if abs(self.factor - 1) < 1e-4 else f"{self.name}, times {self.factor:.4g}"


DIVISORS: Mapping[str, Callable[[Case], Tensor]] = {
    "the step's tokens": lambda case: torch.tensor(float(case.tokens)),
    "each response's tokens, then the sequences": lambda case: case.sequences * case.lengths,
    "the sequences": lambda case: torch.tensor(float(case.sequences)),
    "sequences times the longest response": lambda case: torch.tensor(float(case.sequences * case.mask.shape[1])),
    "each response's tokens": lambda case: case.lengths,
    "nothing": lambda case: torch.ones(()),
}
"""Denominators by name; batches are padded to the longest response."""


def find_divisor(loss: Loss) -> tuple[Divisor | None, list[Tensor], list[Case]]:
    """(the divisor, or None; per batch, on policy, -gradient/advantage; the batches)."""
    cases = [
        on_policy(make_case(8, 12, seed=1)),
        on_policy(make_case(5, 7, seed=2)),
        on_policy(make_case(11, 9, seed=3)),
    ]
    found = [-policy_gradient(loss, case) / case.batch.advantages[:, None] for case in cases]
    chosen = [case.mask & (n != 0) if _by_entropy(n, case) else case.mask for n, case in zip(found, cases, strict=True)]
    for name, divide in DIVISORS.items():
        factors = torch.cat([(n * divide(c))[kept] for n, c, kept in zip(found, cases, chosen, strict=True)])
        middle = float(factors.median())
        if middle > 0 and float((factors - middle).abs().max()) <= SMALL * middle:
            return Divisor(name, middle), found, cases
    return None, found, cases


def _by_entropy(found: Tensor, case: Case) -> bool:
    """Whether the tokens without a gradient are just those of lowest entropy: a mask, and meant."""
    silent = case.mask & (found == 0)
    kept = case.mask & (found != 0)
    return bool(silent.any() and kept.any()) and float(case.entropy[silent].max()) < float(case.entropy[kept].min())


def on_policy_law(loss: Loss) -> tuple[Finding, Divisor | None]:
    """The gradient where all policies are one is REINFORCE's, −A ∇log π divided by some count."""
    divisor, found, cases = find_divisor(loss)
    if divisor is not None:
        says = f"on policy the gradient is REINFORCE's, divided by {divisor}"
        silent = torch.cat([(n == 0)[case.mask] for n, case in zip(found, cases, strict=True)]).double().mean()
        if silent > 0:
            says += f", on the tokens of highest entropy; the other {float(silent):.0%} have none"
        return Finding("on_policy", "holds", says, {"divisor": divisor.name, "factor": divisor.factor}), divisor
    per_token = torch.cat([n[case.mask] for n, case in zip(found, cases, strict=True)])
    return Finding("on_policy", "broken", _not_reinforce(per_token, found, cases)), None


def _not_reinforce(per_token: Tensor, found: list[Tensor], cases: list[Case]) -> str:
    if not per_token.any():
        return "on policy the gradient is 0: nothing would be learned in the first step"
    if bool((per_token <= 0).all()):
        return "on policy the gradient has the opposite sign: it makes good tokens rarer (a minus is missing)"
    scaled = [n * case.tokens / case.logprobs.exp() for n, case in zip(found, cases, strict=True)]
    probability = torch.cat([n[case.mask] for n, case in zip(scaled, cases, strict=True)])
    if float((probability - probability.median()).abs().max()) <= SMALL * float(probability.median().abs()):
        return "on policy each token is weighted by its own probability: the gradient is of π, not of log π"
    silent = float((per_token == 0).double().mean())
    if silent > 0:
        return f"on policy {silent:.0%} of the tokens have no gradient, though no policy differs from another"
    within = [bool((n[row][case.mask[row]] - n[row][case.mask[row]].mean()).abs().max() > SMALL * n[row].abs().max())
              for n, case in zip(found, cases, strict=True) for row in range(len(n))]  # fmt: skip
    where = "within one response" if any(within) else "from response to response"
    low, high = float(per_token.min()), float(per_token.max())
    return (
        f"on policy the factor on −A ∇log π differs {where} ({low:.3g} to {high:.3g}), by none of the usual counts "
        f"({'; '.join(DIVISORS)})"
    )


def homogeneous_law(loss: Loss) -> Finding:
    """Three times the advantages give three times the gradient, less what does not depend on them."""
    case = make_case(seed=4)
    one = policy_gradient(loss, case)
    three = policy_gradient(loss, case.with_advantages(3 * case.batch.advantages))
    _, bare = evaluate(loss, case.with_advantages(torch.zeros_like(case.batch.advantages)))
    more = bare.any() and bare.isfinite().all()
    beside = "; a term beside it (a penalty or bonus) does not depend on the advantage" if more else ""
    if same(three, 3 * one, SMALL):
        return Finding("homogeneous", "holds", f"the gradient is proportional to the advantages{beside}")
    if same(three, one, SMALL):
        return Finding(
            "homogeneous", "broken", "three times the advantages change nothing: they are normalised, or read as signs"
        )
    factor = float((three * one).sum() / one.square().sum().clamp(min=1e-30))
    return Finding(
        "homogeneous", "broken",
        f"three times the advantages give {factor:.3g} times the gradient: they enter through something curved",
    )  # fmt: skip


def masked_law(loss: Loss) -> Finding:
    """Masked tokens have no gradient, and what stands there changes nothing."""
    case = make_case(seed=5)
    _, gradient = evaluate(loss, case)
    outside = gradient[~case.mask]
    if outside.any():
        share = float((outside != 0).double().mean())
        return Finding(
            "masked", "broken", f"{share:.0%} of the masked tokens have a gradient: the mask does not reach every term"
        )
    if not same(evaluate(loss, _filled(case, -60.0))[1], gradient, SMALL):
        return Finding(
            "masked", "broken",
            "log-probabilities at masked tokens change the gradient: they enter a sum or quantile before the mask",
        )  # fmt: skip
    try:
        value, filled = evaluate(loss, _filled(case, math.nan))
        clean = bool(value.isfinite()) and same(filled, gradient, SMALL)
    except DataError:
        clean = False
    if not clean:
        return Finding(
            "masked", "note",
            "masked tokens have no gradient, but NaN there spoils the loss (0 · NaN is NaN): use torch.where",
        )  # fmt: skip
    return Finding("masked", "holds", "masked tokens have no gradient, whatever stands there")


def _filled(case: Case, value: float) -> Case:
    """The same with `value` for every log-probability at masked tokens."""
    filled = {
        name: torch.where(case.mask, old, value)
        for name in ("old_logprobs", "rollout_logprobs", "ref_logprobs")
        if (old := getattr(case.batch, name)) is not None
    }
    logprobs = torch.where(case.mask, case.logprobs, value)
    return replace(case, batch=replace(case.batch, **filled), logprobs=logprobs)


def padding_law(loss: Loss) -> Finding:
    """Three more columns, and a row without any token, change nothing."""
    case = make_case(seed=6)
    width = case.mask.shape[1]
    _, gradient = evaluate(loss, case)
    wider = _padded(case, columns=3)
    _, padded = evaluate(loss, wider)
    if not same(padded[:, :width], gradient, SMALL):
        factor = _factor(padded[:, :width], gradient)
        cause = "it divides by the padded width" if factor and abs(factor - width / (width + 3)) < 1e-4 else ""
        cause = cause or ("it averages over padding too" if factor else "padding takes part in something else")
        said = f"every gradient times {factor:.4f}" if factor else "gradients that are no multiple of the others"
        return Finding("padding", "broken", f"three more columns of padding give {said}: {cause}", {"factor": factor})
    empty = _padded(case, rows=1)
    try:
        _, gradient_empty = evaluate(loss, empty)
    except DataError as error:
        return Finding("padding", "broken", f"a row without response tokens: {error}")
    if not gradient_empty.isfinite().all():
        return Finding("padding", "broken", "a row without response tokens makes the gradient NaN: 0/0 in its mean")
    rows = len(case.mask)
    if not same(gradient_empty[:rows], gradient, SMALL):
        factor = _factor(gradient_empty[:rows], gradient)
        count = f"times {factor:.4f}" if factor else "other gradients"
        return Finding(
            "padding", "note",
            f"columns of padding change nothing; a row without tokens gives {count}: it counts as a sequence",
            {"factor": factor},
        )  # fmt: skip
    return Finding("padding", "holds", "padding changes nothing, neither columns nor rows")


def _padded(case: Case, *, columns: int = 0, rows: int = 0) -> Case:
    def grow(values: Tensor) -> Tensor:
        if values.ndim == 1:
            return torch.cat([values, values[:1].expand(rows)])
        return torch.nn.functional.pad(values, (0, columns, 0, rows), value=0)

    batch = Batch(**{k: grow(v) for k, v in vars(case.batch).items() if v is not None})
    return replace(case, batch=batch, logprobs=grow(case.logprobs), entropy=grow(case.entropy))


def _factor(found: Tensor, expected: Tensor) -> float | None:
    """The one number that `found` is of `expected`, or None."""
    factor = float((found * expected).sum() / expected.square().sum().clamp(min=1e-30))
    return factor if same(found, factor * expected, SMALL) and factor != 0 else None


def order_law(loss: Loss) -> Finding:
    """The order of the sequences changes nothing."""
    case = make_case(seed=7)
    _, gradient = evaluate(loss, case)
    order = torch.randperm(len(case.mask), generator=torch.Generator().manual_seed(0))
    _, other = evaluate(loss, case.select(order, parts=1, trim=False))
    if same(other, gradient[order], SMALL):
        return Finding("order", "holds", "the order of the sequences changes nothing")
    return Finding(
        "order", "broken", "another order of the same sequences gives other gradients: are groups read off it?"
    )


def action_independent_law(loss: Loss) -> Finding:
    """An advantage that is the same for every token of the vocabulary has no gradient in the mean over tokens."""
    bias = {drift: _expected_gradient(loss, drift) for drift in (0.0, 0.05)}
    if bias[0.0] > 1e-4:
        return Finding(
            "action_independent", "broken",
            f"on policy an advantage that does not depend on the token has a mean gradient of {bias[0.0]:.2g} of a "
            "token's: it moves the policy where there is nothing to learn",
            {"on_policy": bias[0.0], "drift_0.05": bias[0.05]},
        )  # fmt: skip
    says = "an advantage that does not depend on the token moves nothing in the mean"
    if bias[0.05] > 1e-3:
        says += (
            f" on policy; at 5 % drift {bias[0.05]:.1%} of a token's gradient is left (no weight, a clip, or a mask)"
        )
    return Finding("action_independent", "holds", says, {"on_policy": bias[0.0], "drift_0.05": bias[0.05]})


def _expected_gradient(loss: Loss, drift: float, vocabulary: int = 6) -> float:
    """|E_y[∇_z L]| over all tokens of one context, relative to the mean |∇_z L| of one."""
    g = torch.Generator().manual_seed(8)
    logits = torch.randn(vocabulary, generator=g, dtype=torch.float64)
    sampled = (logits + drift * torch.randn(vocabulary, generator=g, dtype=torch.float64)).log_softmax(-1)
    current = logits.log_softmax(-1)
    case = _single_tokens(current, sampled, sampled, torch.ones(vocabulary, dtype=torch.float64))
    per_token = policy_gradient(loss, case)
    scores = torch.eye(vocabulary, dtype=torch.float64) - current.exp()
    gradients = per_token * scores
    weight = sampled.exp()[:, None]
    size = float((weight * gradients.norm(dim=-1, keepdim=True)).sum())
    return float((weight * gradients).sum(0).norm()) / max(size, 1e-30)


def _single_tokens(
    logprobs: Float[Tensor, " B"],
    old: Float[Tensor, " B"],
    rollout: Float[Tensor, " B"],
    advantages: Float[Tensor, " B"],
) -> Case:
    """Responses of one token each."""
    column = logprobs[:, None]
    batch = Batch(
        advantages=advantages, response_mask=torch.ones_like(column, dtype=torch.bool), old_logprobs=old[:, None],
        rollout_logprobs=rollout[:, None], ref_logprobs=column.detach(), sequence_ids=torch.arange(len(column)),
    )  # fmt: skip
    return whole(batch, column, torch.ones_like(column))


def single_tokens(ratios: Float[Tensor, " B"], advantage: float, *, old: bool, rollout: bool) -> Case:
    """Responses of one token each whose θ has this ratio to the old policy, to the rollout policy, or to both."""
    logprobs = torch.full_like(ratios, -40.0)
    moved = logprobs - ratios.log()
    policies = (moved if old else logprobs, moved if rollout else logprobs)
    return _single_tokens(logprobs, *policies, torch.full_like(ratios, advantage))


def extreme_law(loss: Loss) -> Finding:
    """Value and gradient are finite, in float32, at log-ratios of up to 50 and log-probabilities of -120."""
    case = make_case(seed=9)
    signs = torch.where(torch.arange(case.mask.shape[1]) % 2 == 0, 1.0, -1.0).double()
    for size in (1.0, 19.0, 50.0):
        logprobs = torch.where(case.mask, case.logprobs, 0) - 120
        batch = replace(
            case.batch, old_logprobs=logprobs + size * signs, rollout_logprobs=logprobs - size * signs,
            ref_logprobs=logprobs + size * signs,
        )  # fmt: skip
        try:
            value, gradient = evaluate(loss, replace(case, batch=batch, logprobs=logprobs))
        except DataError as error:
            return Finding("extreme", "broken", f"at log-ratios of ±{size:g}: {error}")
        largest = float(gradient.abs().max())
        # A trainer computes in float32, whose largest number is e^88.
        if not (value.isfinite() and gradient.isfinite().all()) or max(float(value.abs()), largest) > 3e38:
            return Finding(
                "extreme", "broken",
                f"at log-ratios of ±{size:g} the loss is not finite in float32: limit the log-ratio before exp (±20)",
                {"size": size},
            )  # fmt: skip
    return Finding("extreme", "holds", "finite at log-ratios of ±50")
