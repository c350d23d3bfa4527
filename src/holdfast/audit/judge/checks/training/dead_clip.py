"""A clip that cannot act: its ratio is the trainer over itself, so that it is 1 whatever the rollouts are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import First
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.view import View

CLIP = 0.2
SHARE = 0.02
"""From this share of tokens beyond the clip on, that nothing stops them is worth a warning."""
FEWEST_TOKENS = 100
SURPRISE = 1e-3
"""Tokens that are more certain than this many nats may agree to the last bit by rounding alone."""
FEWEST_UNCERTAIN = 20


class DeadClip:
    """Two ways to see that a clip is idle.

    Sequences in which both policies give the very same number to every uncertain token: one column is a copy of the
    other. And tokens outside [1 - CLIP, 1 + CLIP] on the side where PPO's clip takes the gradient away (A > 0 above,
    A < 0 below, against the engine) that the recorded mask lets through all the same.
    """

    name = "dead_clip"
    asks = "Can the clip act at all?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.copied = 0
        self.compared = 0
        self.sequences = First()
        self.beyond = Binned(1)
        self.passed = Binned(1)

    def update(self, view: View) -> None:
        """Count copied sequences, tokens beyond the clip, and those of them that pass."""
        uncertain = view.measured & (view.tokens("rollout_logprobs") < -SURPRISE)
        tokens = view.sum(uncertain)
        compared = tokens >= FEWEST_UNCERTAIN
        copied = np.flatnonzero(compared & (view.sum(uncertain & (view.log_ratio == 0)) == tokens))
        self.compared += int(compared.sum())
        self.copied += len(copied)
        self.sequences.add((view.first_sequence + copied[:10]).tolist())
        if not view.has("trust_mask", "advantages"):
            return
        sign = np.sign(view.tokens("advantages"))
        ratio = view.log_ratio
        beyond = ((sign > 0) & (ratio > np.log1p(CLIP))) | ((sign < 0) & (ratio < np.log1p(-CLIP)))
        known = view.measured & view.given("trust_mask") & view.given("advantages")
        self.beyond.add_sequences(view, 0, beyond, known)
        self.passed.add_sequences(view, 0, view.tokens("trust_mask"), known & beyond)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """Copies, where they are no matter of rounding; else a mask that lets next to all clipped tokens through."""
        share = self.copied / max(1, self.compared)
        if self.copied >= 3 and share > 0.01 and facts.logprob_resolution == 0:
            yield self._copy(share)
            return
        beyond, passed = self.beyond.estimate(level=0.998), self.passed.mean()[0]
        if self.beyond.sums.sum() < FEWEST_TOKENS or not (beyond.low > SHARE and passed > 0.99):
            return
        yield Finding(
            name=self.name,
            kind="training",
            severity="warning",
            headline=f"{beyond.value:.2%} of the tokens are past a clip of {CLIP} against the engine, and {passed:.0%} "
            "of them get into the gradient",
            meaning="With one update per batch, old is the trainer itself: θ/old is 1 on every token and "
            "a clip on it never acts. Nothing bounds the distance to the policy that sampled.",
            fix="Let the clip compare with the engine (denominator = rollout), or weigh and mask against it. A run "
            "that truncates importance weights is protected in its own way and can ignore this.",
            evidence={
                "share beyond the clip": self.beyond.estimate(),
                "of these in the gradient": float(passed),
                "tokens": int(self.beyond.sums.sum()),
            },
            settings=settings("clip_on_rollout"),
        )

    def _copy(self, share: float) -> Finding:
        return Finding(
            name=self.name,
            kind="data",
            severity="critical" if share > 0.5 else "warning",
            headline=f"in {self.copied:,} sequences ({share:.1%}) engine and trainer give every token the same number, "
            "to the last bit",
            meaning="Two programs never agree that well: one column is a copy of the other. Every ratio is 1, a clip "
            "or mask on it cannot act, and the drift that is really there stays unseen.",
            fix="Log what the engine returned for the tokens it sampled, and never fill it in from the trainer's "
            "forward pass.",
            evidence={"sequences": self.copied, "share of sequences": share},
            where=Where(sequences=tuple(self.sequences.numbers)),
            settings=settings("engine_logprobs"),
            invalidates=share > 0.5,
        )
