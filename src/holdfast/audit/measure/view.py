"""What every check wants to know of a chunk, computed once."""

from __future__ import annotations

from functools import cached_property

from holdfast.audit.measure.alignment import AlignedView
from holdfast.audit.measure.extremes import extremes_of, pulls_of
from holdfast.audit.measure.retokenised import Reencoded, Turns, continued, reencode
from holdfast.audit.measure.stretches import Stretches, classes_of, stretches_of
from holdfast.audit.read.codec import Codec
from holdfast.audit.read.columns import Column


class View(AlignedView):
    """A chunk and all that follows from it: its tokens, how they align, and how drift lies along the responses."""

    codec: Codec | None = None
    """The vocabulary, where a tokenizer was given."""

    @cached_property
    def reencoded(self) -> Reencoded:
        """The own tokens beside the encoding of their text; dear, and only where there is a `codec`."""
        assert self.codec is not None
        return reencode(self, self.codec)

    @cached_property
    def turns(self) -> Turns:
        """Prompts that go on where other sequences of the chunk ended; dear, and only where there is a `codec`."""
        assert self.codec is not None
        return continued(self, self.codec)

    @cached_property
    def extremes(self) -> Column:
        """[N, len(RATES) + 1] of `extremes_of`; needs both log-probabilities."""
        return extremes_of(self)

    @cached_property
    def pulls(self) -> Column:
        """[N, 6] of `pulls_of`; needs both log-probabilities and advantages."""
        return pulls_of(self)

    @cached_property
    def stretches(self) -> Stretches:
        """Drift by stretch of a response: quarter, turn and weight version, at each class of uncertainty."""
        return stretches_of(self, self.classes)

    @cached_property
    def classes(self) -> Column:
        """Flat: class of uncertainty of a measured token, CLASSES for all others."""
        return classes_of(self)
