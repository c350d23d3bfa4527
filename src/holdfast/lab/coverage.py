"""How often a certificate is false, and how often there is one: families of updates whose true gain is known.

Each family draws a data set of rollouts from a pair of policies, with the exact gain J(θ) - J(p) beside it. Some break
an assumption of the certificate on purpose; `breaks` is then the text by which its verdict names that assumption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.core.betting import EProcess
from holdfast.core.certificate import Certificate, certify
from holdfast.core.certificate_words import INDEPENDENT
from holdfast.core.confidence import Confidence
from holdfast.errors import ConfigError
from holdfast.lab.samplers import (
    Draw,
    Step,
    coin_flips,
    coins,
    grouped,
    kl_overwritten,
    rare_ruin,
    trained,
    tree,
    unseen_token,
    watched_null,
)

NO_GROUPS = "no group_ids were given"
RARE = "(3/n)"


@dataclass(frozen=True)
class Family:
    """One kind of update: how to draw a data set of it, and the assumption that it breaks, if any."""

    name: str
    prompts: str
    draw: Draw
    breaks: str | None = None


@dataclass(frozen=True)
class Coverage:
    """Shares of `trials` data sets. `false` are certificates whose claim exceeds the true gain.

    `above` counts lower limits above the true gain whether or not they certify; `refused` certificates withheld because
    exact KL and sampled tokens disagree. `apart` and `apart_false` are the same for limits taken one by one: the
    surrogate's lower limit less the upper limit of the tightest bound on its error, `path` among them. `named` says
    that the verdict names the assumption that the family breaks. `variable` is what the limit was taken of.
    """

    name: str
    prompts: str
    breaks: str | None
    variable: str
    trials: int
    gain: float
    certified: float
    false: float
    above: float
    refused: float
    apart: float
    apart_false: float
    named: bool

    @property
    def holds(self) -> bool:
        """Where the assumptions cover the family, false in 5 % at most (and what chance adds in 99 of 100 studies).

        Elsewhere: the verdict names what is broken.
        """
        chance = 2.33 * (0.05 * 0.95 / self.trials) ** 0.5
        return self.named if self.breaks else self.false <= 0.05 + chance


def families() -> tuple[Family, ...]:
    """All families; those that the assumptions cover come first."""
    noisy = Step(size=0.4)
    return (
        Family("useful step", "100", tree(100, Step())),
        Family("harmful step", "100", tree(100, Step(tilt=-0.6))),
        Family("coin-flip rewards", "100", coin_flips(tree(100, noisy))),
        Family("unseen mass, one token", "200", unseen_token(200)),
        Family("unseen mass in responses", "200", tree(200, Step(rare=0.05))),
        Family("heavy tails", "100", tree(100, Step(size=1.5, tilt=1.0))),
        Family("near-deterministic", "100", tree(100, Step(peak=5.0, size=0.5))),
        Family("sparse reward .1", "50", tree(50, Step(paid=0.1, tilt=1.0))),
        Family("sparse reward .02", "100", tree(100, Step(paid=0.02, tilt=1.0))),
        Family("grouped, 8 a prompt", "50 x 8", grouped(50, 8)),
        Family("end of sequence", "100", tree(100, Step(stop=True))),
        Family("256 tokens", "100", coins(100, 256, 0.01)),
        Family("256 tokens, no gain", "100", coin_flips(coins(100, 256, 0.02))),
        Family("rewards from -2 to 1", "100", tree(100, Step(), span=(-2.0, 1.0))),
        Family("few bad contexts, masked", "200", tree(200, Step(bad=0.03), threshold=0.5)),
        Family("sampled only, useful", "200", tree(200, Step(tilt=1.5), exact=False)),
        Family("sampled only, no gain", "200", coin_flips(tree(200, noisy, exact=False))),
        Family("sampled only, rare ruin", "100", rare_ruin(100, exact=False)),
        Family("no gain, watched after each", "3000", watched_null(3000)),
        Family("held out of its training", "50 of 200", trained(200, held_out=True)),
        Family("kl_exact overwritten", "200", kl_overwritten(tree(200, Step(size=0.3, tilt=-0.1)))),
        Family("trained on these rollouts", "200", trained(200, held_out=False), breaks=INDEPENDENT),
        Family("grouped, no group_ids", "25 x 16", grouped(25, 16, named=False), breaks=NO_GROUPS),
        Family("rare ruined prompts", "100", rare_ruin(100), breaks=RARE),
    )


def study(
    trials: int = 300, *, seed: int = 0, only: Callable[[Family], bool] | None = None, level: float = 0.95
) -> list[Coverage]:
    """`trials` data sets of every family, certified. ConfigError for fewer than one."""
    if trials < 1:
        raise ConfigError(f"trials is {trials}, allowed is at least 1")
    return [
        coverage(family, trials, seed=seed + 1_000_003 * place, level=level)
        for place, family in enumerate(families())
        if only is None or only(family)
    ]


def coverage(family: Family, trials: int, *, seed: int = 0, level: float = 0.95) -> Coverage:
    """One family's row."""
    outcomes = []
    for trial in range(trials):
        sample = family.draw(torch.Generator().manual_seed(seed + trial))
        if isinstance(sample.evidence, Tensor):
            outcomes.append(_watched(sample.evidence, sample.gain, level))
        else:
            found = certify(*sample.evidence, confidence=Confidence(level, 400, trial), **sample.options)
            outcomes.append(_certified(found, sample.gain, family.breaks))

    def share(key: str) -> float:
        return sum(float(outcome.get(key, 0)) for outcome in outcomes) / trials

    return Coverage(
        name=family.name,
        prompts=family.prompts,
        breaks=family.breaks,
        variable=outcomes[0]["variable"],
        trials=trials,
        gain=share("gain"),
        certified=share("certified"),
        false=share("false"),
        above=share("above"),
        refused=share("refused"),
        apart=share("apart"),
        apart_false=share("apart_false"),
        named=family.breaks is None or any(outcome["named"] for outcome in outcomes),
    )


def _watched(units: Tensor, gain: float, level: float) -> dict[str, Any]:
    test = EProcess(level).update(units)
    above = test.lower() > gain
    return {
        "variable": "clipped",
        "gain": gain,
        "certified": test.certified,
        "false": test.certified and above,
        "above": above,
    }


def _certified(found: Certificate, gain: float, broken: str | None) -> dict[str, Any]:
    comparison = found.kl_comparison
    return {
        "variable": found.variable,
        "gain": gain,
        "certified": found.certified,
        "false": found.certified and found.improvement > gain,
        "above": found.evidence.lower > gain,
        "refused": comparison is not None and (comparison.unseen > 0 or comparison.contradicted),
        "named": found.certified and broken is not None and broken in found.verdict,
    } | _apart(found, gain)


def _apart(found: Certificate, gain: float) -> dict[str, Any]:
    if not found.bounds:
        return {}
    limit = found.gain.lower - min(bound.upper for bound in found.bounds.values())
    return {"apart": limit > 0, "apart_false": limit > max(gain, 0)}
