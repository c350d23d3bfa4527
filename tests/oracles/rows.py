"""What the tables of oracles are made of; needs no peer, so that the page can be rendered anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast import Objective, preset
from holdfast.objectives.parts import (
    advantages,
    covariance,
    gates,
    masks,
    penalties,
    ratio_masks,
    reduce,
    token_masks,
    weights,
)

TOLERANCE = 1e-9
"""Relative, in float64, of every value and every element of every gradient."""

BATCHES = 40
"""Random batches per row."""

WIDEST = 9.5
"""Largest |log-ratio| of a row's batches, unless the row says another."""

_MODULES = (advantages, covariance, gates, masks, penalties, ratio_masks, reduce, token_masks, weights)
_NAMES = {name: value for module in _MODULES for name, value in vars(module).items() if isinstance(value, type)}


@dataclass(frozen=True)
class Row:
    """A peer's setting and the objective that equals it, on every one of `BATCHES` random batches.

    `ours` is the Python expression that a user would write: it is shown on the page and it is what runs. `min_tokens`
    is the least number of response tokens per sequence, `widest` the largest |log-ratio|.
    """

    name: str
    settings: Mapping[str, Any]
    ours: str
    note: str = ""
    min_tokens: int = 1
    widest: float = WIDEST
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        """The objective that `ours` builds."""
        return eval(self.ours, {"preset": preset, "Objective": Objective} | _NAMES)


@dataclass(frozen=True)
class Difference:
    """Where the two part: what each does, why, and (by `key`) the test that shows it.

    kind "epsilon": a small number that the peer adds; "choice": two defensible estimators; "defect": the peer does not
    do what its setting says; "missing": the algebra has no part for it.
    """

    key: str
    kind: Literal["epsilon", "choice", "defect", "missing"]
    theirs: str
    ours: str
