"""Log-probabilities that were never computed: exact zeros where the other policy is far from certain."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.data.exact_zeros import ExactZeros
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View

SHORTEST = 16
"""A whole sequence of zeros counts from this length on when there is no trainer to contradict it."""


class ZeroFilled:
    """Counts own tokens with an exact 0 from one policy to which the other gives less than half.

    A certain token rounds to 0 as well (float32 does so from p = 1 - 6e-8 on), so zeros alone prove nothing; but no
    rounding makes 0 of log ½. Top-p does: where a truncation is recorded, zeros count only if the trainer contradicts
    them twice as often as it does other tokens. Without trainer log-probabilities, whole sequences of zeros are
    counted. Zeros that all fall on one token id are left to `forced_tokens`.
    """

    name = "zero_filled"
    asks = "Was every log-probability computed?"
    needs = frozenset({"rollout_logprobs"})

    def __init__(self) -> None:
        self.engine = ExactZeros()
        self.trainer = 0
        self.sequences = 0
        self.certain = self.uncertain = self.far = 0
        self.truncated = False
        self.places = Places()

    def update(self, view: View) -> None:
        """Count zeros; tokens are looked at one by one only where the policies are far apart."""
        self.engine.update(view)
        if not view.has("trainer_logprobs"):
            self.sequences += self._empty_sequences(view)
            return
        if self._truncates(view):
            self.truncated = True
            certain = view.measured & (view.tokens("rollout_logprobs") == 0)
            self.certain += int(certain.sum())
            self.uncertain += int(view.measured.sum() - certain.sum())
            self.far += len(view.far_below) - len(view.blank)
        self.places.add(view, view.blank, -view.log_ratio[view.blank])
        zeros = view.far_above[view.tokens("trainer_logprobs")[view.far_above] == 0]
        self.trainer += len(zeros)
        self.places.add(view, zeros, view.log_ratio[zeros])

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
        """One finding for both policies."""
        engine = 0 if self.engine.one_token() or self._natural() else self.engine.count
        seen = {"engine": engine, "trainer": self.trainer, "whole sequences": self.sequences}
        if not any(seen.values()):
            return
        share = (engine + self.trainer) / max(1, facts.measured_tokens)
        said = [f"{engine:,} of the engine's"] * bool(engine) + [f"{self.trainer:,} of the trainer's"] * bool(
            self.trainer
        )
        said += [f"all of {self.sequences:,} sequences"] * bool(self.sequences)
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"{' and '.join(said)} log-probabilities are exactly 0 where the token was far from certain"
            + (f" ({share:.2%} of tokens)" if facts.measured_tokens else ""),
            meaning="A 0 stands for a value that was never computed. Read as a log-probability it says that the "
            "token was certain, and the ratio to the other policy is then off by a factor of up to thousands: one "
            "such token can carry a whole batch's gradient.",
            fix="Log NaN or nothing where the engine returns no log-probability, and check that logprobs are asked "
            "for on every request, also when a request is resumed or retried. If the zeros are tool output or padding, "
            "take those tokens out of response_mask.",
            evidence={**seen, "share of tokens": share},
            where=self.places.where(),
            settings=settings("engine_logprobs"),
            invalidates=self.sequences > 0 or share > 0.001,
        )
