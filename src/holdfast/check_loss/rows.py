"""Which row of the table a loss is: the policy below its ratio, its limits, and the rows with the nearest gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.check_loss.cases import Case, Loss, make_case, policy_gradient
from holdfast.check_loss.laws import Divisor, single_tokens
from holdfast.errors import ConfigError, DataError
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.gates import Box, Clip, LogClip
from holdfast.objectives.parts.reduce import Normalize
from holdfast.objectives.presets import list_presets, preset

Below = Literal["old", "rollout", "both", "none"]

SAME = 1e-4
"""Relative distance of two gradients from which on a row is not the loss."""

_GIVEN = frozenset({"rollout_logprobs", "entropy", "sequence_ids"})
_GRID = torch.logspace(-2, 2, 401, dtype=torch.float64)


@dataclass(frozen=True)
class Limits:
    """Ratios of single tokens from which the gradient is 0 (`zero_*`) or stops growing (`flat_*`); None: nowhere."""

    zero_above_good: float | None = None
    zero_below_bad: float | None = None
    zero_above_bad: float | None = None
    flat_above: float | None = None
    flat_below: float | None = None


@dataclass(frozen=True)
class Match:
    """A row of the table beside the loss: `distance` is |g − s·row|/|g| on rollouts with drift, s the best factor."""

    row: str
    settings: str
    distance: float
    factor: float
    survivors: bool = False
    own_divisor: bool = True

    @property
    def same(self) -> bool:
        """Whether the row's gradient is the loss's."""
        return self.distance < SAME

    def __str__(self) -> str:
        divided = ", divided by survivors (tokens that it masks leave the denominator)" if self.survivors else ""
        return f"`{self.row}`{f' with {self.settings}' if self.settings else ''}{divided}"


def ratio_below(loss: Loss) -> Below:
    """The policy whose log-probabilities change the gradient, found by moving one at a time."""
    # Beyond the usual limits too: within them θ/old times old/rollout cannot be told from θ/rollout.
    ratios = torch.tensor([0.3, 0.95, 1.0, 1.05, 3.0], dtype=torch.float64)

    def moves(*, old: bool, rollout: bool) -> bool:
        found = _coefficients(loss, ratios, old=old, rollout=rollout)
        return any(bool((c - c[2]).abs().max() > 1e-6 * c.abs().max()) for c in found)

    by_rollout = loss.has_rollout and moves(old=not loss.separate_old, rollout=True)
    by_old = loss.separate_old and moves(old=True, rollout=False)
    if by_old and by_rollout:
        return "both"
    return "old" if by_old else "rollout" if by_rollout else "none"


def _coefficients(loss: Loss, ratios: Tensor, *, old: bool, rollout: bool) -> tuple[Tensor, Tensor]:
    """The factors on A ∇log π of single tokens with these ratios, for good and for bad ones, up to one constant."""
    return tuple(  # pyright: ignore[reportReturnType]
        -policy_gradient(loss, single_tokens(ratios, sign, old=old, rollout=rollout))[:, 0] / sign * len(ratios)
        for sign in (1.0, -1.0)
    )


def limits(loss: Loss, below: Below) -> Limits:
    """Where the gradient of single tokens ends or stops growing, to five digits."""
    if below == "none":
        return Limits()

    def curve(ratios: Tensor) -> tuple[Tensor, Tensor]:
        return _coefficients(loss, ratios, old=below != "rollout" or not loss.separate_old, rollout=below == "rollout")

    good, bad = curve(_GRID)
    zero = 1e-9 * float(torch.cat([good, bad]).abs().max())

    def edge(which: int, ok: Callable[[Tensor, Tensor], Tensor], start: int, step: int) -> float | None:
        """The ratio at which `ok` ends, going from `start` in steps of the grid; None where it never does."""
        place = start
        while 0 <= place + step < len(_GRID) and bool(ok(_GRID[place + step], (good, bad)[which][place + step])):
            place += step
        if not 0 <= place + step < len(_GRID):
            return None
        inside, outside = float(_GRID[place]), float(_GRID[place + step])
        for _ in range(4):
            grid = torch.linspace(inside, outside, 17, dtype=torch.float64)
            fine = curve(grid)[which]
            last = max((i for i in range(len(grid)) if bool(ok(grid[i], fine[i]))), default=0)
            inside, outside = float(grid[last]), float(grid[min(last + 1, 16)])
        return (inside + outside) / 2

    middle = int((_GRID - 1).abs().argmin())
    alive: Callable[[Tensor, Tensor], Tensor] = lambda ratio, c: c.abs() > zero  # noqa: E731
    scale = good[middle]
    grows: Callable[[Tensor, Tensor], Tensor] = lambda ratio, c: (c - ratio * scale).abs() < 1e-6 * ratio * scale.abs()  # noqa: E731
    ends = [edge(0, alive, middle, 1), edge(1, alive, middle, -1), edge(1, alive, middle, 1)]
    flat = [None, None] if ends[0] or ends[1] else [edge(0, grows, middle, 1), edge(0, grows, middle, -1)]
    return Limits(*ends, *flat)


def nearest_rows(loss: Loss, below: Below, found: Limits, divisor: Divisor | None, most: int = 3) -> list[Match]:
    """The rows with the nearest gradients, best first; those that are the loss itself if there are any."""
    case = _wide_case()
    if not loss.separate_old:
        case = replace(case, batch=replace(case.batch, old_logprobs=case.batch.rollout_logprobs))
    if not loss.has_rollout:
        # What a row asks of the rollout policy, such a loss can only ask of the old one.
        case = replace(case, batch=replace(case.batch, rollout_logprobs=case.batch.old_logprobs))
    target = policy_gradient(loss, case)
    if not target.any():
        return []
    matches = [
        _match(name, objective, changed, case, target)
        for name, changed, objective in _candidates(loss, below, found, divisor)
    ]
    matches.sort(
        key=lambda m: (
            0 if m.same else m.distance,
            abs(m.factor - 1) > 1e-3,
            m.survivors,
            bool(m.settings),
            not m.own_divisor,
        )
    )
    seen: set[str] = set()
    best = [m for m in matches if m.row not in seen and not seen.add(m.row)]
    exact = [m for m in best if m.same]
    return (exact or best)[:most]


def _wide_case() -> Case:
    """Rollouts with ratios on both sides of every usual limit: most tokens drift by a third, some by e³."""
    case, far = (
        make_case(24, 10, drift=0.35, staleness=0.35, seed=20),
        make_case(24, 10, drift=3.0, staleness=3.0, seed=20),
    )
    some = torch.rand(case.mask.shape, generator=torch.Generator().manual_seed(21)) < 0.3
    names = ("old_logprobs", "rollout_logprobs")
    mixed = {name: torch.where(some, getattr(far.batch, name), getattr(case.batch, name)) for name in names}
    old, rollout, own = mixed["old_logprobs"], mixed["rollout_logprobs"], case.logprobs
    # Some sequences hardly drift from the engine, before the step or after it: masks of whole sequences keep these.
    third = torch.arange(len(case.mask))[:, None] % 3
    rollout = torch.where(third == 0, old + 1e-4 * (rollout - old), rollout)
    rollout = torch.where(third == 1, own + 1e-4 * (rollout - own), rollout)
    old = torch.where(third == 1, own + 1e-4 * (old - own), old)
    # The first token of the others has r = e², so that every limit above is met by good and by bad ones.
    first = (third == 2) & (torch.arange(case.mask.shape[1]) == 0)
    old, rollout = torch.where(first, own - 2, old), torch.where(first, own - 2, rollout)
    return replace(case, batch=replace(case.batch, old_logprobs=old, rollout_logprobs=rollout))


def _match(name: str, objective: Objective, changed: str, case: Case, target: Tensor) -> Match:
    stats = case.stats()
    leaf = stats.logprobs.clone().requires_grad_()
    loss = objective(case.batch, replace(stats, logprobs=leaf)).loss
    (own,) = torch.autograd.grad(loss, leaf)
    factor = float((target * own).sum() / own.square().sum().clamp(min=1e-30))
    distance = float((target - factor * own).norm() / target.norm())
    accepted, usual = objective.normalize.over == "accepted", preset(name).normalize.reduction
    return Match(name, changed, distance, factor, accepted, objective.normalize.reduction == usual)


def _candidates(
    loss: Loss, below: Below, found: Limits, divisor: Divisor | None
) -> Iterator[tuple[str, str, Objective]]:
    """(row, what was changed in words, objective): each row as it is, and with the limits that were measured."""
    for name in list_presets():
        objective = preset(name, penalties=())
        if not objective.needs <= _GIVEN or objective.advantage.needs:
            continue
        if below in ("old", "rollout") and not objective.weights:
            objective = objective.with_(denominator=below)
        yield from _with_divisors(name, "", objective, divisor)
        fitted, said = _fitted(objective, found)
        if fitted is not None:
            yield from _with_divisors(name, said, fitted, divisor)


def _with_divisors(
    name: str, said: str, objective: Objective, divisor: Divisor | None
) -> Iterator[tuple[str, str, Objective]]:
    reduction: dict[str, Any] = {
        "the step's tokens": "token_mean",
        "each response's tokens, then the sequences": "sequence_mean_token_mean",
        "each response's tokens": "sequence_mean_token_mean",
    }
    kind = reduction.get(divisor.name if divisor else "", "sequence_mean_token_sum" if divisor else None)
    own = objective.normalize if kind is None else Normalize(kind)
    # A pooled ratio spreads its gradient over its tokens, and a divisor that was read off tokens is another one there.
    for normalize in dict.fromkeys((own, objective.normalize)):
        yield name, said, objective.with_(normalize=normalize)
        if objective.masks:
            yield name, said, objective.with_(normalize=replace(normalize, over="accepted"))


def _fitted(objective: Objective, found: Limits) -> tuple[Objective | None, str]:
    """The same row with the limits that were measured, and these in words; None where its gate has none."""
    gate: Any = objective.gate
    try:
        if isinstance(gate, Clip) and found.zero_above_good and found.zero_below_bad:
            low, high = round(1 - found.zero_below_bad, 4), round(found.zero_above_good - 1, 4)
            dual = None if found.zero_above_bad is None else round(found.zero_above_bad, 3)
            said = f"clip {low:g}/{high:g}" + ("" if dual is None else f", dual {dual:g}")
            return objective.with_(gate=Clip(low, high, dual)), said
        if isinstance(gate, LogClip) and found.zero_above_good and found.zero_below_bad:
            low, high = round(-math.log(found.zero_below_bad), 4), round(math.log(found.zero_above_good), 4)
            return objective.with_(gate=LogClip(low, high)), f"clip {low:g}/{high:g} of log r"
        if type(gate) is Box and (found.flat_above or found.flat_below) and gate.low_negative is None:
            top, bottom = (None if x is None else round(x, 3) for x in (found.flat_above, found.flat_below))
            said = f"cap {top:g}" if top is not None else "no cap"
            return objective.with_(gate=Box(bottom, top)), said + ("" if bottom is None else f", floor {bottom:g}")
    except ConfigError:
        pass
    return None, ""


def identify(loss: Loss, divisor: Divisor | None) -> tuple[Below, Limits, list[Match]]:
    """(policy below the ratio, limits, nearest rows); nothing where the loss breaks on ordinary rollouts."""
    try:
        below = ratio_below(loss)
        found = limits(loss, below)
        return below, found, nearest_rows(loss, below, found, divisor)
    except DataError:
        return "none", Limits(), []
