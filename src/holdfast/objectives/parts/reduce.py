"""Pool and normaliser of an objective: over which unit a gate acts, and what divides the sum."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.normalize import Reduction, reduction_weights
from holdfast.core.ratios import PoolOver
from holdfast.objectives.parts.part import Part, require
from holdfast.types import Counts


@dataclass(frozen=True)
class Pool(Part, family="pool"):
    """Whether log-ratios are pooled over a sequence or turn, and on which side of the gate: the two do not commute.

    order "before": f(exp(pool log r)), GSPO (arXiv 2507.18071, eq. 7); "after": exp(pool log f(r)), GMPO and SSPO.
    gradient "token" keeps the pooled value but sends the gradient of token t to token t alone: sg[s_i] θ/sg[θ],
    GSPO-token (eq. 14); equal to "pooled" when the advantage is the same on every token and n_it is 1/n_i.
    """

    over: PoolOver = "token"
    order: Literal["before", "after"] = "before"
    gradient: Literal["pooled", "token"] = "pooled"

    def __post_init__(self) -> None:
        ok = self.gradient == "pooled" or (self.over != "token" and self.order == "before")
        require(self, "gradient", ok, "'pooled' unless a sequence or turn is pooled before the gate")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"turn_ids"}) if self.over.startswith("turn") else frozenset()

    def formula(self) -> str:
        if self.over == "token":
            return ""
        unit, how = self.over.split("_")
        index = "i" if unit == "sequence" else "i,turn"
        inside = "log r_t" if self.order == "before" else "log f(r_t)"
        result = "f(s)" if self.order == "before" else "s"
        token = ", gradient of each token to itself" if self.gradient == "token" else ""
        return f"s_{index} = exp({'mean' if how == 'mean' else 'Σ'}_t {inside}), φ = {result}·A{token}"


@dataclass(frozen=True)
class Normalize(Part, family="normalize"):
    """The denominator (core.normalize.reduction_weights); `length` in tokens for "fixed_length".

    over "all": rejected sequences and tokens stay in the denominator, so masking shrinks the step (TRM's estimator).
    "accepted": the mean over what the masks kept, a different estimator: what editing the response mask amounts to.
    """

    reduction: Reduction = "token_mean"
    length: int | None = None
    over: Literal["all", "accepted"] = "all"

    def __post_init__(self) -> None:
        if self.reduction == "fixed_length":
            require(self, "length", self.length is not None and self.length > 0, "a positive number of tokens")
        else:
            require(self, "length", self.length is None, "left out unless reduction = 'fixed_length'")

    def weights(
        self, mask: Bool[Tensor, "B T"], counts: Counts, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "..."]:
        """n_it for this mask and these counts, as [B, T], [B, 1] or one number for all."""
        return reduction_weights(mask, counts, self.reduction, self.length, dtype)

    def formula(self) -> str:
        text = {
            "token_mean": "1/K",
            "sequence_mean_token_mean": "1/(N n_i)",
            "sequence_mean_token_sum": "1/N",
            "fixed_length": f"1/({self.length} N)",
        }[self.reduction]
        return text if self.over == "all" else f"{text}, counting accepted tokens only"
