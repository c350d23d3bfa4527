"""What every check wants to know of a chunk, computed once."""

from __future__ import annotations

from functools import cached_property

from holdfast.audit.measure.alignment import AlignedView
from holdfast.audit.measure.stretches import Stretches, classes_of, stretches_of
from holdfast.audit.read.columns import Column


class View(AlignedView):
    """A chunk and all that follows from it: its tokens, how they align, and how drift lies along the responses."""

    @cached_property
    def stretches(self) -> Stretches:
        """Drift by stretch of a response: quarter, turn and weight version, at each class of uncertainty."""
        return stretches_of(self, self.classes)

    @cached_property
    def classes(self) -> Column:
        """Flat: class of uncertainty of a measured token, CLASSES for all others."""
        return classes_of(self)
