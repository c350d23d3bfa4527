"""Log-probabilities that cannot be: NaN, infinite or positive on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.view import View

TOLERANCE = 1e-3
"""Engines round: a log-probability of +0.0002 is a rounded 0."""
_COLUMNS = ("rollout_logprobs", "trainer_logprobs")


class InvalidLogprobs:
    """Counts own tokens whose log-probability is NaN, infinite or above 0."""

    name = "invalid_logprobs"
    asks = "Is every log-probability a number at most 0?"
    needs = frozenset({"rollout_logprobs"})

    def __init__(self) -> None:
        self.counts = {(column, kind): 0 for column in _COLUMNS for kind in ("NaN", "infinite", "positive")}
        self.places = Places()
        self.own = 0

    def update(self, view: View) -> None:
        """Count, and remember the first places."""
        self.own += int(view.own.sum())
        everywhere = []
        for column in filter(view.has, _COLUMNS):
            values = view.tokens(column)
            known = view.own & view.given(column)
            wrong = np.zeros(len(values), bool)
            for kind, found in (
                ("NaN", np.isnan(values)),
                ("infinite", np.isinf(values)),
                ("positive", values > TOLERANCE),
            ):
                self.counts[column, kind] += int((found & known).sum())
                wrong |= found & known
            everywhere.append(wrong)
        self.places.add(view, np.flatnonzero(np.any(everywhere, 0)))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding for all kinds together."""
        seen = {f"{column} {kind}": n for (column, kind), n in self.counts.items() if n}
        if not seen:
            return
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"{sum(seen.values()):,} log-probabilities of sampled tokens are impossible: "
            + ", ".join(f"{n:,} {what}" for what, n in seen.items()),
            meaning="One of them makes the loss NaN or a weight of thousands; the tokens around it are not to be "
            "trusted either.",
            fix="Log the engine's own value for the sampled token. A token that the policy did not sample (tool "
            "output, a forced token) belongs outside response_mask, where NaN is allowed.",
            evidence={**seen, "share of own tokens": sum(seen.values()) / max(1, self.own)},
            where=self.places.where(),
            invalidates=sum(seen.values()) > 0.001 * max(1, self.own),
        )
