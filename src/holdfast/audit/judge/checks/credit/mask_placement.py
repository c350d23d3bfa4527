"""A response mask that lies beside what was sampled: inverted, off by one, over tool text, or without the end token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding, Severity
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled, add_up
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.edges import NOTHING, OTHERS, OWN, Stints, stints_of
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

SCALES = (1, 4, 16)
"""Tokens at a turn's start or end that are looked at together."""
NEAR = SCALES[-1]
"""Tokens of a block."""
ENOUGH = 4_000_000
"""Tokens whose surprise is compared with the entropy."""
EDGES = {
    "opening": "the first {} of a turn, after text of others",
    "turning": "the first {} of a turn",
    "closing": "the last {} before text of others",
}
"""Starts after tokens outside the mask, starts where only the turn's number changes, ends before tokens outside it."""
ZONES = tuple((edge, scale) for edge in EDGES for scale in SCALES)
ELSEWHERE, OUTSIDE = len(ZONES), len(ZONES) + 1
SUMS = ("tokens", "excess", "entropy")
FEWEST = 32
"""Tokens of a zone."""
EXCESS, TIMES = 0.5, 0.5
"""Nats by which the mean surprise of a zone must exceed its entropy beyond that elsewhere, and how many times it."""
BLOCK_EXCESS, MOST_BLOCKS = 1.5, 0.02
"""Nats of mean excess over a block that sampling gives once in thousands, and the share of such blocks allowed."""
LEVEL = 0.998
REAL = 0.3
"""By how much the share of logged values at an edge must differ from that elsewhere."""
ENDS = 0.5
"""Share of the finished responses whose last token, and no other near it, is outside the mask."""
FEWEST_RESPONSES = 8


@dataclass
class _Excess:
    """What surprise exceeds entropy by, of some chunks: by zone, in blocks of NEAR own tokens, and where most."""

    zones: Binned = field(default_factory=lambda: Binned((len(ZONES) + 2) * len(SUMS)))
    blocks: Column = field(default_factory=lambda: np.zeros(2))
    places: Places = field(default_factory=Places)

    def zone(self, zone: int) -> Column:
        """SUMS of a zone."""
        return self.zones.sums[:, zone * len(SUMS) : (zone + 1) * len(SUMS)].sum(0)

    def whole(self) -> Column:
        """Sums over all own tokens: those elsewhere and in the widest zones (a short stretch counts twice)."""
        widest = [i for i, (_, scale) in enumerate(ZONES) if scale == NEAR]
        return self.zone(ELSEWHERE) + np.sum([self.zone(i) for i in widest], 0)

    def zone_excess(self, zone: int) -> float:
        """Summed excess of a zone beyond that elsewhere, where it is one for sure; 0 where not."""
        tokens, excess, entropy = self.zone(zone)
        if tokens < FEWEST or self.zone(ELSEWHERE)[0] < FEWEST:
            return 0.0
        z, e = zone * len(SUMS), ELSEWHERE * len(SUMS)
        gap = self.zones.estimate(lambda m: m[..., z + 1] / m[..., z] - m[..., e + 1] / m[..., e], LEVEL)
        enough = gap.low > EXCESS and excess > TIMES * entropy
        return float(excess) if enough else 0.0


class MaskPlacement:
    """Asks of each token in the mask whether the policy sampled it, by three signs.

    Of sampled tokens the mean of the surprise -log p is the mean entropy, at any contexts: E[-log p(x)] = H(p). Text
    that others wrote surprises the policy more. So excess = surprise - entropy is summed at the first and last tokens
    of turns, elsewhere and outside the mask, and over blocks of NEAR own tokens. An entropy at another temperature
    shifts all zones alike, and a zone counts only beyond the others. Engines log values for what they sampled, and
    mostly none, or 0, elsewhere: where values lie outside the mask and blanks inside, it is inverted or shifted. And a
    finished response whose last token alone is outside the mask never teaches the policy to end.
    """

    name = "mask_placement"
    asks = "Does the response mask cover what the policy sampled, and only that?"
    needs = frozenset({"response_mask"})

    def __init__(self) -> None:
        self.looked: Sampled[_Excess] = Sampled(ENOUGH)
        self.logged = np.zeros((6, 2))
        """Tokens and values logged by the engine: own, outside; last outside before own, first outside after own,
        first own after outside, last own before outside."""
        self.ends = np.zeros(2, np.int64)
        self.end_places = Places()

    def update(self, view: View) -> None:
        """Sum the excess by zone, and count what the engine logged on both sides of the mask's edges."""
        self._count_ends(view)
        stints = stints_of(view)
        if view.has("rollout_logprobs") and stints.outside:
            self._count_logged(view, stints)
        if view.has("entropy", "rollout_logprobs") and self.looked.wants(view.key):
            self._add_excess(view, stints)

    def _count_ends(self, view: View) -> None:
        own, starts, ends = view.own, view.chunk.offsets[:-1], view.chunk.offsets[1:]
        long = view.lengths >= 4
        if view.has("finish_reason"):
            long &= view.chunk.words["finish_reason"] != "length"
        last = ends[long] - 1
        missing = ~own[last] & own[last - 1]
        if view.has("turn_ids"):
            missing &= view.tokens("turn_ids")[last] == view.tokens("turn_ids")[last - 1]
        self.ends += int(missing.sum()), len(starts[long])
        self.end_places.add(view, last[missing])

    def _count_logged(self, view: View, stints: Stints) -> None:
        engine = view.tokens("rollout_logprobs")
        logged = np.isfinite(engine) & (engine != 0)
        own = view.own
        counts = np.array([own.sum(), (own & logged).sum(), (~own).sum(), (~own & logged).sum()], float)
        self.logged[:2] += counts.reshape(2, 2)
        opens, closes = stints.begins[stints.before == OTHERS], stints.ends[stints.after == OTHERS]
        places = (opens - 1, closes, opens, closes - 1)
        for row, at in enumerate(places, 2):
            self.logged[row] += len(at), int(logged[at].sum())

    def _add_excess(self, view: View, stints: Stints) -> None:
        entropy, engine = view.tokens("entropy"), view.tokens("rollout_logprobs")
        surprise = -view.tokens("trainer_logprobs") if view.has("trainer_logprobs") else -engine
        real = np.isfinite(surprise) & np.isfinite(entropy) & ((surprise > 0) | (entropy > 0))
        known = view.own & real
        excess = np.where(known, surprise - entropy, np.float32(0))
        table = np.zeros((len(view.chunk), len(ZONES) + 2, len(SUMS)))
        sums = [_cumulative(values) for values in (known, excess, np.where(known, entropy, np.float32(0)))]
        zones = [*_zones(stints), _rest(stints)]
        for zone, (begins, ends) in enumerate(zones):
            sequence = view.sequence[np.minimum(begins, view.chunk.token_count - 1)]
            for column, total in enumerate(sums):
                inside = total[ends] - total[begins]
                table[:, zone, column] = np.bincount(sequence, inside, len(view.chunk))
        if stints.outside:
            out = np.flatnonzero(~view.own & real)
            for column, values in enumerate((None, surprise[out] - entropy[out], entropy[out])):
                table[:, OUTSIDE, column] = np.bincount(view.sequence[out], values, len(view.chunk))
        found = _Excess()
        found.zones.add_quantities(view, table.reshape(len(view.chunk), -1))
        self._add_blocks(found, view, sums)
        self.looked.add(view.key, int(found.zones.sums[:, :: len(SUMS)].sum()), found)

    @staticmethod
    def _add_blocks(into: _Excess, view: View, sums: list[Column]) -> None:
        """Blocks of NEAR tokens in a row of the response, all of them the policy's own."""
        starts = np.arange(0, view.chunk.token_count - NEAR + 1, NEAR)
        tokens, excess = (total[starts + NEAR] - total[starts] for total in sums[:2])
        whole = (tokens == NEAR) & (view.sequence[starts] == view.sequence[starts + NEAR - 1])
        found = np.flatnonzero(whole & (excess > BLOCK_EXCESS * NEAR))
        into.blocks += whole.sum(), len(found)
        into.places.add(view, starts[found], excess[found])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """What lies wrong, the gravest first; and the end token."""
        every = _Excess()
        for one in self.looked.values():
            add_up(every, one)
        found = self._inverted(every) or self._shifted(every) or _surprising(every)
        if found:
            yield found
        missing, finished = self.ends.tolist()
        if missing >= max(FEWEST_RESPONSES, ENDS * finished) and not found:
            yield self._no_end(missing, finished)

    def _share(self, row: int) -> float:
        return float(self.logged[row, 1] / max(1.0, self.logged[row, 0]))

    def _inverted(self, every: _Excess) -> Finding | None:
        tokens, excess, _ = every.zone(OUTSIDE)
        own_tokens, own_excess, own_entropy = every.whole()
        by_surprise = (
            tokens > 100
            and own_tokens > 100
            and excess < EXCESS * tokens
            and every.zone(OUTSIDE)[2] > 0.02 * tokens
            and own_excess - own_tokens * max(0.0, excess / tokens) > EXCESS * own_tokens + TIMES * own_entropy
        )
        by_values = self.logged[1, 0] > 100 and self._share(0) < 0.1 and self._share(1) > 0.5
        if not (by_surprise or by_values):
            return None
        return _finding(
            "the mask is inverted: what it covers the policy did not sample, and what it leaves out it did"
            + (
                f" (the engine logged {self._share(1):.0%} of the tokens outside, {self._share(0):.0%} of those inside)"
                if by_values
                else f" (surprise exceeds entropy by {own_excess / own_tokens:.2g} nats inside, and by "
                f"{excess / tokens:.2g} outside)"
            ),
            "The loss trains tool output and prompts, and nothing of what the policy decided.",
            {"logged inside": self._share(0), "logged outside": self._share(1)},
            every.places,
        )

    def _shifted(self, every: _Excess) -> Finding | None:
        own, outside, before, after, first, last = (self._share(row) for row in range(6))
        if min(self.logged[2, 0], self.logged[3, 0]) < FEWEST_RESPONSES:
            return None
        late = before - outside > REAL and own - last > REAL
        early = after - outside > REAL and own - first > REAL
        if not (late or early):
            return None
        count = int(self.logged[2, 0])
        return _finding(
            f"the mask stands one token {'late' if late else 'early'} at {count:,} edges: the engine logged a value "
            f"for the token {'before' if late else 'after'} each of its stretches, and none for its "
            f"{'last' if late else 'first'} one",
            "At every turn a token of the tool's is trained on, and one of the policy's own is not: mostly its first, "
            "which decides what it does, or its end token.",
            {"edges": count, "logged there outside the mask": before if late else after},
            every.places,
        )

    def _no_end(self, missing: int, finished: int) -> Finding:
        return _finding(
            f"the last token of {missing / finished:.0%} of {finished:,} finished responses is outside the mask, and "
            "the one before it inside: the end is never trained on",
            "The policy gets no credit for stopping and no blame for going on. Responses grow longer until they meet "
            "the limit.",
            {"responses": missing, "share of finished responses": missing / finished},
            self.end_places,
            "warning",
            "Let the mask include the end token that the policy sampled (its mask is 1 up to and including the first "
            "end token). If the engine strips it, ask for it back; leave out end tokens that the sampler put there.",
        )


def _surprising(every: _Excess) -> Finding | None:
    """The zone whose surprise exceeds its entropy most; or blocks anywhere."""
    best = max(range(len(ZONES)), key=every.zone_excess)
    if every.zone_excess(best) > 0:
        edge, scale = ZONES[best]
        tokens, excess, entropy = every.zone(best)
        where = "among " * (scale > 1) + EDGES[edge].format(f"{scale} tokens" if scale > 1 else "token")
        return _not_sampled(every, where, scale, (excess + entropy) / tokens, entropy / tokens)
    blocks, wrong = every.blocks.tolist()
    if wrong < FEWEST or wrong <= MOST_BLOCKS * blocks:
        return None
    tokens, excess, entropy = every.whole()
    if excess < 0.5 * BLOCK_EXCESS * wrong * NEAR:
        return None
    where = f"in {wrong / blocks:.0%} of its stretches of {NEAR} tokens"
    return _not_sampled(every, where, NEAR, (excess + entropy) / tokens, entropy / tokens)


def _not_sampled(every: _Excess, where: str, scale: int, surprise: float, entropy: float) -> Finding:
    alone = scale == 1
    return _finding(
        f"the mask holds text that the policy did not sample, {where}: the mean surprise there is "
        f"{surprise:.2f} nats and the entropy {entropy:.2f}, and of sampled tokens the two are equal",
        "Text that the policy did not write (a tool's answer, a template, a retrieved passage) is trained on as if "
        "it had: it learns to imitate it, and its large surprise makes the largest ratios and gradients."
        + (" One token only: the mask is one place off." if alone else ""),
        {"mean surprise": surprise, "mean entropy": entropy},
        every.places,
    )


def _cumulative(values: Column) -> Column:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _zones(stints: Stints) -> Iterable[tuple[Column, Column]]:
    """(first tokens, tokens after the last) of the zones, in ZONES' order."""
    for edge, scale in ZONES:
        at = {"opening": stints.before == OTHERS, "turning": stints.before == OWN, "closing": stints.after == OTHERS}
        begins, ends = stints.begins[at[edge]], stints.ends[at[edge]]
        if edge == "closing":
            yield np.maximum(ends - scale, begins), ends
        else:
            yield begins, np.minimum(begins + scale, ends)


def _rest(stints: Stints) -> tuple[Column, Column]:
    """What no zone of an edge holds: the inner part of each stretch."""
    begins = np.where(stints.before == NOTHING, stints.begins, np.minimum(stints.begins + NEAR, stints.ends))
    ends = np.where(stints.after == OTHERS, np.maximum(stints.ends - NEAR, begins), stints.ends)
    return begins, ends


_FIX = (
    "Build the mask from token ids as the engine returned them, turn by turn: 1 for what it sampled, 0 for all that "
    "was put between. Masks found by decoding, matching text and encoding again slip at every boundary. Compare one "
    "sequence by eye (positions below)."
)


def _finding(
    headline: str,
    meaning: str,
    evidence: dict[str, float | int],
    places: Places,
    severity: Severity = "critical",
    fix: str = "",
) -> Finding:
    return Finding(
        name=MaskPlacement.name,
        kind="data",
        severity=severity,
        headline=headline,
        meaning=meaning,
        fix=fix or _FIX,
        evidence=evidence,
        where=places.where(),
        settings=settings("token_ids_not_text"),
        invalidates=severity == "critical",
    )
