"""Log-probabilities that were never computed: exact zeros where the token was far from certain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.data.exact_zeros import ExactZeros, ZerosByToken
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

SHORTEST = 16
"""A whole sequence of zeros counts from this length on when there is no trainer to contradict it."""
FEWEST = 4
"""Contradicted zeros below which one odd token may be all there is."""
ABSURD = -5.0
"""A log-probability that few sampled tokens have: where a zero is contradicted by less, the other side may be wrong."""


@dataclass
class _Contradicted:
    """Exact zeros of one side to which the other gives less than half, and how many of those it all but excludes."""

    count: int = 0
    absurd: int = 0
    places: Places = field(default_factory=Places)

    def add(self, view: View, tokens: Column, other: Column) -> None:
        self.count += len(tokens)
        self.absurd += int((other < ABSURD).sum())
        self.places.add(view, tokens, -other)

    @property
    def one_sided(self) -> bool:
        """Whether the other side's values look sampled: then the zeros were filled in, and not its values wrong."""
        return self.count >= FEWEST and self.absurd < self.count / 2


class ZeroFilled:
    """Counts own tokens with an exact 0 from one policy to which the other gives less than half.

    A certain token rounds to 0 as well (float32 does so from p = 1 - 6e-8 on), so zeros alone prove nothing; but no
    rounding makes 0 of log ½. Which side is wrong shows in the other's values: beside zeros that were filled in they
    are those of sampled tokens. Where most are below ABSURD the zero may be the honest one, and the side is not known.
    Below FEWEST tokens it is worth a word only. Top-p makes zeros too: where a truncation is recorded, zeros count
    only if the trainer contradicts them twice as often as it does other tokens.

    Without trainer log-probabilities, whole sequences of zeros are counted, and zeros that fall on all token ids alike
    beside ordinary values (`ZerosByToken`). Zeros that all fall on one token id are left to `forced_tokens`.
    """

    name = "zero_filled"
    asks = "Was every log-probability computed?"
    needs = frozenset({"rollout_logprobs"})

    def __init__(self) -> None:
        self.zeros = ExactZeros()
        self.engine, self.trainer = _Contradicted(), _Contradicted()
        self.alone = ZerosByToken()
        self.sequences = 0
        self.certain = self.uncertain = self.far = 0
        self.truncated = False

    def update(self, view: View) -> None:
        """Count zeros; tokens are looked at one by one only where the policies are far apart."""
        self.zeros.update(view)
        self.truncated |= self._truncates(view)
        if not view.has("trainer_logprobs"):
            self.sequences += self._empty_sequences(view)
            self.alone.update(view)
            return
        certain = int((view.measured & (view.tokens("rollout_logprobs") == 0)).sum())
        self.certain += certain
        self.uncertain += int(view.measured.sum()) - certain
        self.far += len(view.far_below) - len(view.blank)
        self.engine.add(view, view.blank, view.tokens("trainer_logprobs")[view.blank])
        zeros = view.far_above[view.tokens("trainer_logprobs")[view.far_above] == 0]
        self.trainer.add(view, zeros, view.tokens("rollout_logprobs")[zeros])

    @staticmethod
    def _truncates(view: View) -> bool:
        limits = (("top_p", lambda v: (v > 0) & (v < 1)), ("top_k", lambda v: v > 0), ("min_p", lambda v: v > 0))
        return any(view.has(name) and bool(limit(view.numbers(name)).any()) for name, limit in limits)

    def _natural(self) -> bool:
        """Whether truncation explains the zeros: a kept set of one token has log-probability 0, and drift is drift."""
        rate = self.far / max(1, self.uncertain)
        return self.truncated and self.engine.count < 10 + 2 * rate * self.certain

    @staticmethod
    def _empty_sequences(view: View) -> int:
        own = view.sum(view.own)
        zeros = view.sum(view.own & (view.tokens("rollout_logprobs") == 0))
        return int(((zeros == own) & (own >= SHORTEST)).sum())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """What was filled in, by side; what contradicts without telling the side; what the engine alone shows."""
        excused = self.zeros.one_token() is not None or self._natural()
        sides = {"engine": _Contradicted() if excused else self.engine, "trainer": self.trainer}
        filled = {whose: side for whose, side in sides.items() if side.one_sided}
        if filled or self.sequences:
            yield self._filled(filled, facts)
        elif not self.truncated and (share := self.alone.filled()) is not None:
            yield self._alone(share)
        unclear = {whose: side for whose, side in sides.items() if side.count and not side.one_sided}
        if unclear and not filled:
            yield self._unclear(unclear, facts)

    def _filled(self, filled: dict[str, _Contradicted], facts: Facts) -> Finding:
        count = sum(side.count for side in filled.values())
        share = count / max(1, facts.measured_tokens)
        said = [f"{side.count:,} of the {whose}'s" for whose, side in filled.items()]
        said += [f"all of {self.sequences:,} sequences"] * bool(self.sequences)
        places = max(filled.values(), key=lambda side: side.count).places if filled else Places()
        return Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"{' and '.join(said)} log-probabilities are exactly 0 where the token was far from certain"
            + (f" ({share:.2%} of tokens)" if facts.measured_tokens else ""),
            meaning="A 0 stands for a value that was never computed. Read as a log-probability it says that the "
            "token was certain, and the ratio to the other policy is then off by a factor of up to thousands: one "
            "such token can carry a whole batch's gradient.",
            fix=_FIX,
            evidence={
                "engine": filled["engine"].count if "engine" in filled else 0,
                "trainer": filled["trainer"].count if "trainer" in filled else 0,
                "whole sequences": self.sequences,
                "share of tokens": share,
            },
            where=places.where(),
            settings=settings("engine_logprobs"),
            invalidates=self.sequences > 0 or share > 0.001,
        )

    def _alone(self, share: float) -> Finding:
        zeros = self.alone.zeros / max(1, self.alone.tokens)
        return Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"{zeros:.0%} of the engine's log-probabilities are exactly 0, on every token id alike, beside "
            "ordinary values",
            meaning="A policy is certain of some tokens and not of others. Zeros that fall on all of them alike stand "
            "for values that were never computed; read as log-probabilities they say that these tokens were certain. "
            "The log has no log-probabilities of the trainer to say which tokens they are.",
            fix=_FIX,
            evidence={"share of zeros": zeros, "at least, on every token id": share, "tokens": self.alone.tokens},
            settings=settings("engine_logprobs"),
            invalidates=True,
        )

    def _unclear(self, unclear: dict[str, _Contradicted], facts: Facts) -> Finding:
        count = sum(side.count for side in unclear.values())
        whose = " or the ".join(f"{name}'s" for name in unclear)
        places = max(unclear.values(), key=lambda side: side.count).places
        return Finding(
            name=self.name,
            kind="data",
            severity="warning" if count >= FEWEST else "info",
            headline=f"at {count:,} token{'s' if count > 1 else ''} one of the two log-probabilities is exactly 0 and "
            "the other says that the token was all but impossible: which of them is wrong cannot be told",
            meaning=f"Either the {whose} value was filled in, or the other side computed it wrongly. The ratio is off "
            "by orders of magnitude there.",
            fix="Score these tokens once more on both sides (positions below). " + _FIX,
            evidence={"tokens": count, "share of tokens": count / max(1, facts.measured_tokens)},
            where=places.where(),
        )


_FIX = (
    "Log NaN or nothing where no log-probability was returned, and check that logprobs are asked for on every request, "
    "also when a request is resumed or retried. If the zeros are tool output or padding, take those tokens out of "
    "response_mask."
)
