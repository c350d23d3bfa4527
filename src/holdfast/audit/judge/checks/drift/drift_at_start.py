"""Drift that is largest at the first tokens of a response and fades: the two sides read different prompts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, growth_severity
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled
from holdfast.audit.measure.contrast import growth
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

EDGES = (4, 8, 16, 32, 64, 128)
"""Positions at which the first tokens of a response are cut into zones; the last zone ends at the last edge."""
FIRST, LATER = (8, 16, 32), 64
"""The first so many tokens are compared with those from LATER to the last edge on."""
ENOUGH = 4_000_000
"""Tokens that are looked at."""
_SHAPE = (3, FOLDS, len(EDGES) + 1, CLASSES)


class DriftAtStart:
    """Compares the first tokens of responses with later ones of the same responses, at equal uncertainty.

    A response's first tokens depend on the prompt most; what differs there (a doubled special token, another template,
    a prompt that was cut, images that were expanded) fades as the response itself becomes the context. Three lengths
    of the start are tried: the shortest that shows it is named.
    """

    name = "drift_at_start"
    asks = "Is the drift at the first tokens of a response as small as later on?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.looked: Sampled[Column] = Sampled(ENOUGH)
        """Of chunks: [3, FOLDS, zones, CLASSES] of Σ|log ratio|, tokens and, in the first class, Σ k3."""

    def update(self, view: View) -> None:
        """Sum the drift of the first tokens by zone and uncertainty."""
        if not self.looked.wants(view.key):
            return
        lengths = np.minimum(view.lengths, EDGES[-1])
        starts = np.repeat(view.chunk.offsets[:-1], lengths)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        token = starts + within
        kind = view.classes[token].astype(np.int64)
        keep = kind < CLASSES
        token, kind, within = token[keep], kind[keep], within[keep]
        zone = np.searchsorted(EDGES, within, side="right")
        place = (view.token_fold[token] * (len(EDGES) + 1) + zone) * CLASSES + kind
        sums = np.zeros(_SHAPE)
        size = sums[0].size
        sums[0] = np.bincount(place, view.size[token], size).reshape(_SHAPE[1:])
        sums[1] = np.bincount(place, minlength=size).reshape(_SHAPE[1:])
        sums[2, ..., 0] = np.bincount(place, view.k3[token], size).reshape(_SHAPE[1:]).sum(-1)
        self.looked.add(view.key, len(token), sums)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the first tokens drift more, for sure, and more than any other part of the start."""
        later = self._zones(EDGES.index(LATER) + 1, len(EDGES))
        for count in FIRST:
            first = self._zones(0, EDGES.index(count) + 1)
            grown = growth(later[:2], first[:2])
            if not grown.surely_above(GROWTH):
                continue
            kl_first, kl_later = (float(part[2].sum() / max(1.0, part[1].sum())) for part in (first, later))
            yield Finding(
                name=self.name,
                kind="drift",
                severity=growth_severity(grown.value, kl_first),
                headline=f"the first {count} tokens of a response drift {grown.value:.1f} times as much as those from "
                f"{LATER} on, and the drift fades",
                meaning="Engine and trainer do not read the same prompt, or not from the same state: the response "
                "begins in two different contexts, which become alike as it goes on. Where it begins is where it is "
                "decided.",
                fix="Compare the prompt's token ids on the two sides: a special token that is there twice, another "
                "chat template or system prompt, a prompt cut on the left, image placeholders that one side expands, a "
                "prefix cache from other weights. Pass token ids, not text.",
                evidence={"growth": grown.estimate(), "KL, first tokens": kl_first, "KL, later ones": kl_later},
                settings=settings("token_ids_not_text"),
            )
            return

    def _zones(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums, counts and KL, each [FOLDS, CLASSES], of zones first to end - 1 together."""
        every = np.sum([np.zeros(_SHAPE), *self.looked.values()], 0)
        sums, counts, kl = every[:, :, first:end].sum(2)
        return sums, counts, kl
