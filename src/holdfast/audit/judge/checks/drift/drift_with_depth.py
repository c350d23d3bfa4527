"""Drift that grows along the response: an engine whose numerics worsen with length, or weights changed on the way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, growth_severity
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import power_bin
from holdfast.audit.measure.contrast import FEWEST_TOKENS, FEWEST_UNITS, Groups, Growth
from holdfast.audit.measure.stretches import QUARTERS
from holdfast.audit.measure.view import View

LENGTHS = 24


class DriftWithDepth:
    """Compares the last quarter of responses with the first quarter of the same ones, at equal uncertainty.

    Long responses are thus compared with themselves: that they belong to harder prompts is no growth. The test is made
    twice, over all responses and over the longest class of lengths (a doubling) that enough prompts reach.
    """

    name = "drift_with_depth"
    asks = "Is the drift at the end of a response as small as at its start?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.groups = Groups(LENGTHS * QUARTERS)

    def update(self, view: View) -> None:
        """Sum the drift by length class and quarter."""
        stretches = view.stretches
        length = power_bin(view.lengths[stretches.sequence], LENGTHS)
        self.groups.add(view, length * QUARTERS + stretches.quarter)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the growth exceeds GROWTH beyond chance."""
        tests = [(lengths, self._growth(lengths)) for lengths in self._tests()]
        found = [(lengths, grown) for lengths, grown in tests if grown.surely_above(GROWTH)]
        if not found:
            return
        lengths, grown = max(found, key=lambda item: item[1].value)
        kl_last = self.groups.kl_of(lengths * QUARTERS + QUARTERS - 1)
        kl_first = self.groups.kl_of(lengths * QUARTERS)
        low, high = 1 << max(0, int(lengths.min()) - 1), min((1 << int(lengths.max())) - 1, facts.longest)
        yield Finding(
            name=self.name,
            kind="drift",
            severity=growth_severity(grown.value, kl_last),
            headline=f"the last quarter of responses of {low:,} to {high:,} tokens drifts {grown.value:.1f} times as "
            "much as their first quarter",
            meaning="The end of a long chain is sampled from another policy than the one trained. Errors add up along "
            "the response, so the longest ones, from which the most is to be learnt, are trained on worst.",
            fix="Look for what changes with length: KV-cache precision, rotary scaling, chunked prefill, prefix "
            "caching, weights exchanged in mid-response. Until it is found, mask whole sequences by a length-neutral "
            "rule, so that long ones are not simply dropped.",
            evidence={"growth": grown.estimate(), "KL, last quarter": kl_last, "KL, first quarter": kl_first},
            settings=settings("length_neutral_mask"),
        )

    def _tests(self) -> list[np.ndarray]:
        """Classes of lengths to test together: all of them, and the longest alone."""
        last = np.arange(LENGTHS) * QUARTERS + QUARTERS - 1
        known = (self.groups.units()[last] >= FEWEST_UNITS) & (self.groups.tokens()[last] >= FEWEST_TOKENS)
        longest = np.flatnonzero(known)[-1:]
        return [lengths for lengths in (np.flatnonzero(self.groups.tokens()[last]), longest) if len(lengths)]

    def _growth(self, lengths: np.ndarray) -> Growth:
        return self.groups.growth(lengths * QUARTERS, lengths * QUARTERS + QUARTERS - 1)
