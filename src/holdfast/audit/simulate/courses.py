"""Simulated courses of runs: healthy ones that rise, wobble and warm up, and the same with one fault planted.

`python -m holdfast.audit.simulate.courses` prints the figures of docs/audit.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from holdfast.audit.course import Column, Course, Series
from holdfast.audit.judge.course import judge_course
from holdfast.audit.judge.finding import at_least

LENGTHS = (20, 40, 80, 150, 300, 600, 1500)
"""Steps of a simulated run, each as often."""


def healthy_course(seed: int) -> Course:
    """A run that learns: every series of the vocabulary, noisy, autocorrelated and heavy-tailed.

    The reward rises along a logistic curve, from anywhere to anywhere above it, early or late, sometimes to the end of
    the task; one in five runs waits a tenth of its steps before. Noise is AR(1) of correlation 0 to .95 whose
    innovations have Student's tails of 3 to 30 degrees of freedom. Entropy falls with learning, stays or grows by less
    than half; responses grow up to threefold, stay or shrink while the reward rises; the mismatch grows by less than
    twofold; a gradient norm in 200 is ten times its neighbours, one in 1000 infinite.
    """
    rng = np.random.default_rng([21, seed])
    count = int(rng.choice(LENGTHS))
    noise = Noise(rng, count)
    start = rng.uniform(0, 0.6)
    learnt = learning(rng, count)
    gain = rng.uniform(0.15, 1 - start)
    reward = np.clip(start + gain * learnt + noise(rng.uniform(0.005, 0.06)), 0, 1)
    scale = rng.choice([1.0, 1.0, 2.0, 10.0])
    shift = rng.choice([0.0, 0.0, -1.0])
    length = rng.uniform(100, 4000) * (1 + rng.choice([-0.4, 0.0, 0.3, 2.0]) * learnt) * np.exp(noise(0.05))
    cut = np.clip(rng.uniform(0, 0.12) + 0.05 * learnt + noise(0.02), 0, 1)
    change = rng.choice([-0.8, -0.5, -0.2, 0.0, 0.4])
    spiked = rng.random(count)
    gradient = rng.uniform(0.05, 2) * np.exp(noise(rng.uniform(0.1, 0.5))) * np.where(spiked < 0.005, 10.0, 1.0)
    mixed = np.clip(1 - np.abs(2 * (start + gain * learnt) - 1), 0.05, 1)
    series = {
        "reward": shift + scale * reward,
        "reward_std": scale * 0.45 * np.sqrt(mixed) * np.exp(noise(0.1)),
        "equal_groups": np.clip(0.1 + 0.5 * (1 - mixed) + noise(0.05), 0, 0.85),
        "entropy": rng.uniform(0.1, 1.5) * (1 + change * learnt) * np.exp(noise(rng.uniform(0.02, 0.12))),
        "kl_ref": 1e-4 + rng.uniform(0.001, 0.2) * learnt * np.exp(noise(0.2)),
        "kl_old": rng.uniform(1e-5, 5e-3) * np.exp(noise(0.5)),
        "mismatch_kl": rng.uniform(1e-4, 4e-3) * (1 + rng.uniform(0, 0.8) * learnt) * np.exp(noise(0.2)),
        "mismatch_probs": rng.uniform(5e-4, 5e-3) * (1 + rng.uniform(0, 0.5) * learnt) * np.exp(noise(0.1)),
        "clip_share": rng.uniform(1e-4, 0.1) * np.exp(noise(0.4)),
        "length": length,
        "truncated": cut,
        "gradient_norm": np.where(spiked > 0.999, np.inf, gradient),
        "learning_rate": schedule(rng, count),
        "loss": noise(0.05),
    }
    steps = np.arange(1, count + 1) * int(rng.choice([1, 1, 5]))
    return Course({name: Series(steps, values) for name, values in series.items()})


@dataclass
class Noise:
    """AR(1) noise of a run: each call gives another one of the same memory and tails, of this standard deviation."""

    rng: np.random.Generator
    count: int

    def __post_init__(self) -> None:
        self.memory = float(self.rng.choice([0.0, 0.3, 0.6, 0.8, 0.9, 0.95]))
        self.tails = float(self.rng.choice([3, 5, 30]))

    def __call__(self, deviation: float) -> Column:
        drawn = self.rng.standard_t(self.tails, self.count) / np.sqrt(self.tails / (self.tails - 2))
        out = np.zeros(self.count)
        last = drawn[0]
        for i in range(self.count):
            last = self.memory * last + np.sqrt(1 - self.memory**2) * drawn[i]
            out[i] = last
        return deviation * out


def learning(rng: np.random.Generator, count: int) -> Column:
    """From 0 to about 1: a logistic curve that begins after a tenth of the steps in one run of five."""
    time = np.linspace(0, 1, count)
    wait = 0.1 if rng.random() < 0.2 else 0.0
    curve = 1 / (1 + np.exp(-(time - rng.uniform(0.2, 0.6)) * rng.uniform(4, 15)))
    curve = (curve - curve[0]) / (curve[-1] - curve[0])
    return np.where(time < wait, 0.0, curve)


def schedule(rng: np.random.Generator, count: int) -> Column:
    """A warm-up from 0 and then a constant, linear or cosine learning rate, the last two down to 0."""
    time = np.arange(count) / max(1, count - 1)
    shape = (np.ones(count), 1 - time, 0.5 * (1 + np.cos(np.pi * time)))[int(rng.integers(3))]
    return 1e-6 * np.minimum(1, np.arange(count) / max(1, count // 20)) * shape


Change = Callable[[dict[str, Column], float, Column, np.random.Generator], dict[str, Column]]


@dataclass(frozen=True)
class CourseFault:
    """Something that goes wrong over the steps; the check of this name must find it.

    `apply(values, strength, after, rng)` gives what changes of the series; `after` rises from 0 to 1 from the middle of
    the run on.
    """

    check: str
    describe: str
    strengths: tuple[float, ...]
    apply: Change

    def plant(self, course: Course, strength: float, rng: np.random.Generator) -> Course:
        """The course with the fault in it."""
        values = {name: series.values for name, series in course.series.items()}
        count = len(next(iter(values.values())))
        after = np.clip(np.linspace(-1.5, 1.5, count), 0, 1)
        changed = self.apply(values, strength, after, rng)
        return replace(
            course, series={n: replace(s, values=changed.get(n, s.values)) for n, s in course.series.items()}
        )


def _sunk(values: dict[str, Column], share: float, after: Column) -> Column:
    """The reward that goes back from where it is to where it was lowest, and this share of its size below."""
    reward = values["reward"]
    best = np.quantile(reward, 0.9)
    return reward - share * abs(best) * after


def _flat(values: dict[str, Column]) -> Column:
    """The reward's scatter about its first level, without its rise."""
    reward = values["reward"]
    width = max(3, len(reward) // 5)
    return reward[0] + 0.3 * (
        reward - np.convolve(np.pad(reward, width, "edge"), np.ones(width) / width, "same")[width:-width]
    )


def _ended(values: Column, share: float, by: float) -> Column:
    """The values, which are `by` for the last `share` of the steps."""
    return np.where(np.arange(len(values)) >= (1 - share) * len(values), by, values)


def _scaled(values: Column, factor: float, after: Column) -> Column:
    """The values' scatter about their first level, which goes to `factor` times itself."""
    return values[0] * (values / _smooth(values)) * (1 + (factor - 1) * after)


COURSE_FAULTS = (
    CourseFault(
        "reward_falls",
        "the reward falls by {strength:.0%} of its best from the middle of the run on",
        (0.1, 0.3, 0.6, 1.0),
        lambda v, s, a, r: {"reward": _sunk(v, s, a)},
    ),
    CourseFault(
        "reward_flat",
        "the reward stays where it began, with {strength:g} of it as noise",
        (0.1, 0.03, 0.01),
        lambda v, s, a, r: {"reward": 0.5 + 0.5 * s * r.normal(size=len(a))},
    ),
    CourseFault(
        "rewards_equal",
        "rewards of every step are the same in the last {strength:.0%} of the run",
        (0.4, 1.0),
        lambda v, s, a, r: {name: _ended(v[name], s, 0.0) for name in ("reward", "reward_std")},
    ),
    CourseFault(
        "entropy_explodes",
        "the entropy grows to {strength:g} times while the reward sinks",
        (2.0, 3.0, 6.0),
        lambda v, s, a, r: {
            "entropy": _scaled(v["entropy"], s, a),
            "reward": _sunk(v, 1.0, a),
        },
    ),
    CourseFault(
        "entropy_collapse",
        "the entropy falls to {strength:g} while the reward stays",
        (0.5, 0.3, 0.05),
        lambda v, s, a, r: {
            "entropy": _scaled(v["entropy"], s, a),
            "reward": _flat(v),
        },
    ),
    CourseFault(
        "lengths_explode",
        "responses grow to {strength:g} times while the reward sinks",
        (2.0, 3.0, 8.0),
        lambda v, s, a, r: {
            "length": _scaled(v["length"], s, a),
            "reward": _sunk(v, 1.0, a),
        },
    ),
    CourseFault(
        "lengths_collapse",
        "responses shrink to {strength:g} while the reward sinks",
        (0.5, 0.3, 0.05),
        lambda v, s, a, r: {
            "length": _scaled(v["length"], s, a),
            "reward": _sunk(v, 1.0, a),
        },
    ),
    CourseFault(
        "truncation",
        "the share of cut responses grows by {strength:.0%} while the reward stays",
        (0.3, 0.6, 0.9),
        lambda v, s, a, r: {"truncated": np.clip(v["truncated"] + s * a, 0, 1), "reward": _flat(v)},
    ),
    CourseFault(
        "mismatch",
        "the KL of engine and trainer grows to {strength:g} times",
        (3.0, 10.0, 100.0),
        lambda v, s, a, r: {"mismatch_kl": v["mismatch_kl"] * s**a},
    ),
    CourseFault(
        "mismatch",
        "the KL of engine and trainer is {strength:g} throughout",
        (0.01, 0.03, 0.1),
        lambda v, s, a, r: {"mismatch_kl": s * v["mismatch_kl"] / np.median(v["mismatch_kl"])},
    ),
    CourseFault(
        "kl",
        "the KL to the reference grows to {strength:g} nats per token while the reward sinks",
        (0.1, 0.3, 3.0),
        lambda v, s, a, r: {
            "kl_ref": 0.003 * (s / 0.003) ** a * np.exp(0.2 * r.normal(size=len(a))),
            "reward": _sunk(v, 1.0, a),
        },
    ),
    CourseFault(
        "gradient",
        "the gradient norm is {strength:g} times as large at one step in fifteen",
        (5.0, 20.0, 100.0),
        lambda v, s, a, r: {"gradient_norm": v["gradient_norm"] * np.where(np.arange(len(a)) % 15 == 7, s, 1.0)},
    ),
    CourseFault(
        "clip_share",
        "{strength:.0%} of the tokens are clipped from the middle of the run on",
        (0.2, 0.4, 0.8),
        lambda v, s, a, r: {"clip_share": np.maximum(v["clip_share"], s * a)},
    ),
    CourseFault(
        "learning_rate",
        "the learning rate is 0 for the last {strength:.0%} of the steps",
        (0.1, 0.4, 1.0),
        lambda v, s, a, r: {"learning_rate": _ended(np.maximum(v["learning_rate"], 1e-9), s, 0.0)},
    ),
    CourseFault(
        "not_finite",
        "the loss is NaN for the last {strength:.0%} of the steps",
        (0.05, 0.5),
        lambda v, s, a, r: {"loss": _ended(v["loss"], s, np.nan)},
    ),
)


def _smooth(values: Column) -> Column:
    """The values' own trend, a running median."""
    width = max(3, len(values) // 5) | 1
    return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(values, width // 2, mode="reflect"), width), -1)


def course_alarms(course: Course) -> set[str]:
    """Names of the checks of the course that give a warning or worse."""
    return {finding.name for finding in judge_course(course)[0] if at_least(finding.severity, "warning")}


def course_detected(seed: int) -> set[tuple[str, float]]:
    """(description, strength) of the planted faults whose check finds them in healthy course number 1000 + `seed`."""
    found = set()
    for fault in COURSE_FAULTS:
        for strength in fault.strengths:
            course = fault.plant(healthy_course(1000 + seed), strength, np.random.default_rng(seed))
            if fault.check in course_alarms(course):
                found.add((fault.describe, strength))
    return found


def main(healthy: int = 200, faulty: int = 10) -> None:
    """Print the alarms in healthy courses, and the share of the faulty ones in which each fault was found."""
    wolf = Counter(name for seed in range(healthy) for name in course_alarms(healthy_course(seed)))
    print(f"alarms in {healthy} healthy courses: {dict(wolf)}")
    found = Counter(which for seed in range(faulty) for which in course_detected(seed))
    for fault in COURSE_FAULTS:
        form = ".0%" if "{strength:.0%}" in fault.describe else "g"
        shares = (f"{s:{form}}: **{found[fault.describe, s] / faulty:.0%}**" for s in fault.strengths)
        print(f"| `{fault.check}`: {re.sub('{.*?}', '*s*', fault.describe)} | {' · '.join(shares)} |")


if __name__ == "__main__":
    main()
