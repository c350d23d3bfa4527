"""Whether cutting a step into micro-batches changes its gradient, by how much, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from holdfast.check_loss.cases import Case, Loss, evaluate, make_case, same
from holdfast.check_loss.laws import SMALL, Finding

SIZES = ([3, 3, 3], [1] * 9, [3, 6], [4, 5], [1, 2, 6])
EQUAL = 2
"""How many of them, at the front, have equally many sequences in all micro-batches."""


def split_law(loss: Loss) -> Finding:
    """Micro-batches, put together as the framework does, have the gradient of the whole step."""
    if loss.combine == "once":
        return Finding("split", "not judged", f"{loss.shape} hands over the whole step in one call")
    case = make_case(9, 12, seed=10)
    _, expected = evaluate(loss, case)
    kept = (expected != 0) & case.mask
    trials: list[tuple[list[Tensor], list[float]]] = []
    for sizes in SIZES:
        rows = list(torch.arange(len(case.mask)).split(sizes))
        trials.append((rows, [_factor_of(loss, case, expected, part, len(rows)) for part in rows]))
    factors = [factor for _, found in trials for factor in found]
    if all(abs(factor - 1) <= SMALL for factor in factors):
        return Finding("split", "holds", "no split into micro-batches changes the gradient")
    if all(factor == factor for factor in factors):
        said = f"a split into micro-batches gives {min(factors):.3g} to {max(factors):.3g} times the right gradient"
        cause = _cause(loss, case, kept, trials)
        numbers = {"least": min(factors), "most": max(factors)}
        if all(abs(factor - 1) <= SMALL for _, found in trials[:EQUAL] for factor in found):
            fixed = loss.shape == "trl"
            where = ", as TRL's have" if fixed else "; sizes that vary (dynamic batches, a short last one) break it"
            said += f", and the right one while all micro-batches have equally many sequences{where}"
            return Finding("split", "note" if fixed else "broken", f"{said}: {cause}", numbers)
        return Finding("split", "broken", f"{said}: {cause}", numbers)
    return Finding(
        "split", "broken",
        "a split into micro-batches gives other gradients, no multiples of the right ones: a statistic (mean, standard "
        "deviation, quantile, group) is taken over the micro-batch",
    )  # fmt: skip


def _factor_of(loss: Loss, case: Case, expected: Tensor, rows: Tensor, parts: int) -> float:
    """What a micro-batch's share of the step's gradient is of what it should be; NaN where it is no multiple."""
    part = case.select(rows, parts)
    width = part.mask.shape[1]
    _, gradient = evaluate(loss, part)
    gradient = gradient / parts if loss.combine == "mean" else gradient
    right = expected[rows][:, :width]
    size = right.square().sum()
    if size == 0:
        return 1.0 if not gradient.any() else float("nan")
    factor = float((gradient * right).sum() / size)
    return factor if same(gradient, factor * right, SMALL) else float("nan")


def _cause(loss: Loss, case: Case, kept: Tensor, trials: list[tuple[list[Tensor], list[float]]]) -> str:
    """The count whose use, of a micro-batch in the place of the step, has just these factors."""
    everything = torch.arange(len(case.mask))
    for averaged in (loss.combine == "mean", True):
        for count, values in _counts(case, kept).items():
            wanted = [
                values(everything) / max(values(part), 1e-30) / (len(rows) if averaged else 1)
                for rows, _ in trials
                for part in rows
            ]
            found = [factor for _, factors in trials for factor in factors]
            if all(abs(f - w) <= 1e-4 * w for f, w in zip(found, wanted, strict=True)):
                how = "and micro-batches are averaged" if averaged else "where the step's is needed"
                return f"it divides by the micro-batch's own {count}, {how}{_remedy(loss)}"
    if all(abs(factor * len(rows) - 1) < 1e-4 for rows, factors in trials for factor in factors):
        return (
            "the loss is a sum, and micro-batches are averaged: with m of them the gradient is 1/m of the sum; divide "
            "by a count of the step"
        )
    return "the cause is not among the usual counts"


def _remedy(loss: Loss) -> str:
    names = {
        "plain": "; take the step's count as an argument (num_items_in_batch) and let micro-batches add up",
        "verl": "; pass **config.global_batch_info to agg_loss",
        "trl": "; divide a sum by inputs['num_items_in_batch']",
        "prime-rl": "; return a sum, prime-rl divides by the step's tokens",
    }
    return names.get(loss.shape, "")


def _counts(case: Case, kept: Tensor) -> Mapping[str, Callable[[Tensor], float]]:
    lengths = case.mask.sum(dim=-1)

    def of(values: Tensor) -> Callable[[Tensor], float]:
        return lambda rows: float(values[rows].sum())

    longest = torch.stack([row.nonzero().max() + 1 for row in case.mask])
    return {
        "sequences": of(torch.ones(len(lengths))),
        "tokens": of(lengths),
        "surviving tokens (those that are clipped or masked have left the denominator)": of(kept.sum(dim=-1)),
        "surviving sequences": of(kept.any(dim=-1)),
        "longest response": lambda rows: float(longest[rows].max()),
        "sequences times its longest response": lambda rows: float(longest[rows].max()) * len(rows),
    }
