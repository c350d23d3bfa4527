"""Weights: detached importance weights that multiply the policy term."""

from jaxtyping import Float
from torch import Tensor

from holdfast.objectives.part import Part
from holdfast.objectives.terms import Terms


class Weight(Part, family="weight", abstract=True):
    """A detached factor per token."""

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        """A whole-batch statistic, [B, T] or 0-d, that `weight` gets back; or None."""
        return None

    def weight(self, terms: Terms, prepared: Tensor | None) -> Float[Tensor, "B T"] | Float[Tensor, "B 1"]:
        """The factor of each token."""
        raise NotImplementedError
