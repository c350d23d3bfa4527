"""How a coefficient changes over optimiser steps: annealing is what makes an entropy term asymptotically unbiased."""

import math
from dataclasses import dataclass
from typing import Literal

from holdfast.objectives.parts.part import Part, require_positive


@dataclass(frozen=True)
class Anneal(Part, family="schedule"):
    """inverse_sqrt: 1/√(1 + k/k₀);  linear: max(0, 1 − k/k₀);  cosine: (1 + cos(π min(1, k/k₀)))/2;  constant: 1.

    `steps` is k₀. Lei and Baehr (arXiv 2604.09676) anneal by the inverse square root.
    """

    shape: Literal["constant", "inverse_sqrt", "linear", "cosine"] = "constant"
    steps: float = 100.0

    def __post_init__(self) -> None:
        require_positive(self, "steps")

    def factor(self, step: int) -> float:
        """The factor in [0, 1] at this optimiser step; steps count from 0."""
        progress = step / self.steps
        if self.shape == "inverse_sqrt":
            return 1 / math.sqrt(1 + progress)
        if self.shape == "linear":
            return max(0.0, 1 - progress)
        if self.shape == "cosine":
            return (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return 1.0

    def formula(self) -> str:
        if self.shape == "constant":
            return ""
        shapes = {"inverse_sqrt": "/√(1 + k/{0:g})", "linear": "·(1 − k/{0:g})₊", "cosine": "·(1 + cos(πk/{0:g}))/2"}
        return shapes[self.shape].format(self.steps)
