"""Log-probabilities that cannot be: NaN, infinite or positive on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
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
        self.places: list[tuple[int, int]] = []
        self.own = 0

    def update(self, view: View) -> None:
        """Count, and remember the first places."""
        self.own += int(view.own.sum())
        for column in filter(view.has, _COLUMNS):
            values = view.tokens(column)
            known = view.own & view.given(column)
            for kind, found in (
                ("NaN", np.isnan(values)),
                ("infinite", np.isinf(values)),
                ("positive", values > TOLERANCE),
            ):
                bad = np.flatnonzero(found & known)
                self.counts[column, kind] += len(bad)
                for token in bad[: max(0, 10 - len(self.places))]:
                    self.places.append((view.first_sequence + int(view.sequence[token]), int(view.position[token])))

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
            where=Where(sequences=tuple(dict.fromkeys(s for s, _ in self.places)), positions=tuple(self.places)),
            invalidates=sum(seen.values()) > 0.001 * max(1, self.own),
        )
