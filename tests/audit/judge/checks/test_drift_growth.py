"""Growth of the drift by depth, turn, age, step and environment: planted exactly, and what must not look like it.

Every token has the engine's log-probability -1 unless said otherwise and the trainer's -1 ± d, so |log ratio| is d.
"""

import numpy as np
import pytest

from holdfast.audit.judge.checks.drift.drift_by_environment import DriftByEnvironment
from holdfast.audit.judge.checks.drift.drift_level import DriftLevel
from holdfast.audit.judge.checks.drift.drift_with_age import DriftWithAge
from holdfast.audit.judge.checks.drift.drift_with_depth import DriftWithDepth
from holdfast.audit.judge.checks.drift.drift_with_step import DriftWithStep
from holdfast.audit.judge.checks.drift.drift_with_turn import DriftWithTurn
from holdfast.types import Rollout


def drifting(prompt, drift, engine=-1.0, **fields):
    """One rollout with these |log ratio|, signs alternating."""
    drift = np.asarray(drift, float)
    base = np.broadcast_to(np.asarray(engine, float), drift.shape)
    trainer = base + drift * np.where(np.arange(len(drift)) % 2, 1, -1)
    return Rollout(
        (prompt,), (1,) * len(drift), tuple(base.tolist()), tuple(trainer.tolist()), group_id=prompt, **fields
    )


def run(count, drift, **fields):
    return [drifting(i, drift(i) if callable(drift) else drift, **fields) for i in range(count)]


def quarters(*levels, length=100):
    return np.repeat(levels, length // 4)


def grows(look, check, rollouts):
    (got,) = look(check, rollouts)
    return got


def test_depth_is_the_last_quarter_over_the_first(look):
    got = grows(look, DriftWithDepth, run(60, quarters(0.02, 0.03, 0.05, 0.08)))
    assert got.evidence["growth"].value == pytest.approx(4.0, rel=1e-5)
    assert got.evidence["KL, last quarter"] == pytest.approx(np.cosh(0.08) - 1, rel=5e-3)
    assert got.severity == "warning"
    assert "64 to 100 tokens" in got.headline
    assert "4.0 times" in got.headline
    assert set(got.settings) >= {"verl", "TRL", "Holdfast"}


@pytest.mark.parametrize(("last", "severity"), [(0.01, "info"), (0.05, "warning"), (0.4, "critical")])
def test_growth_within_numerics_is_no_harm(look, last, severity):
    """k3 of ±.01 is 5e-5, below 2e-4; of ±.05 .00125; of ±.4 .081, above .015."""
    assert grows(look, DriftWithDepth, run(60, quarters(last / 4, last, last, last))).severity == severity


def test_less_than_half_more_is_no_growth(look):
    assert look(DriftWithDepth, run(60, quarters(0.02, 0.02, 0.02, 0.029))) == []


def test_few_prompts_show_no_growth(look):
    """Five prompts of a thousand tokens: whatever they show, it is five samples."""
    assert look(DriftWithDepth, run(5, quarters(0.02, 0.03, 0.05, 0.08, length=1000))) == []


def test_harder_tokens_at_the_end_are_no_growth(look):
    """Certain tokens drift .005, uncertain ones .1, at any depth; the end only has more uncertain ones."""

    def rollout(i):
        rng = np.random.default_rng(i)
        uncertain = rng.random(200) < np.linspace(0.1, 0.9, 200)
        return drifting(i, np.where(uncertain, 0.1, 0.005), np.where(uncertain, -2.0, -0.05))

    assert look(DriftWithDepth, [rollout(i) for i in range(60)]) == []


def test_harder_prompts_with_longer_responses_are_no_growth(look):
    short = run(40, np.full(40, 0.01))
    long = [drifting(100 + i, np.full(400, 0.05)) for i in range(40)]
    assert look(DriftWithDepth, [*short, *long]) == []


def test_growth_of_the_longest_alone_is_found(look):
    """Sixty responses of 64 tokens are even; ten of 1,024 grow fourfold: few tokens of the short ones hide nothing."""
    short = run(600, np.full(64, 0.05))
    long = [drifting(1000 + i, quarters(0.05, 0.05, 0.05, 0.2, length=1024)) for i in range(10)]
    got = grows(look, DriftWithDepth, [*short, *long])
    assert got.evidence["growth"].value == pytest.approx(4.0, rel=1e-4)
    assert "1,024 to 1,024" in got.headline


def turns(lengths):
    return tuple(np.repeat(np.arange(len(lengths)), lengths).tolist())


def test_turns_after_the_first(look):
    drift = np.repeat([0.02, 0.04, 0.08], 40)
    got = grows(look, DriftWithTurn, run(60, drift, turn_ids=turns([40, 40, 40])))
    assert got.evidence["growth"].value == pytest.approx(3.0, rel=1e-5)  # (.04 + .08)/2 over .02
    assert "turn 2 is worst" in got.headline


def test_single_turns_say_nothing_of_turns(look):
    """Prompts with tools drift more, in all of their turns; prompts without have one turn only."""
    one = run(60, np.full(40, 0.01), turn_ids=(0,) * 40)
    two = [drifting(100 + i, np.full(40, 0.05), turn_ids=turns([20, 20])) for i in range(60)]
    assert look(DriftWithTurn, [*one, *two]) == []


def by_age(levels, steps=4):
    """Every step has rollouts of each age with that drift."""
    return [
        drifting(
            100 * step + 10 * age + i, np.full(100, levels[age]), step=step, weight_versions=(10 + step - age,) * 100
        )
        for step in range(steps)
        for age in range(len(levels))
        for i in range(8)
    ]


def test_older_weights_drift_more(look):
    """k3 of ±.3 is .0453, above 3 · .015: critical. Classes of age are 0, 1 and 2 to 3."""
    got = grows(look, DriftWithAge, by_age([0.05, 0.1, 0.3]))
    assert got.evidence["growth"].value == pytest.approx(6.0, rel=1e-4)
    assert "2 to 3 updates ago" in got.headline
    assert got.severity == "critical"
    assert got.evidence["KL, age 1"] == pytest.approx(np.cosh(0.1) - 1, rel=1e-3)


def test_staleness_within_a_healthy_engines_noise_is_none(look):
    """k3 of ±.06 is .0018: below .002, what healthy mixtures of experts show at equal weights."""
    assert look(DriftWithAge, by_age([0.01, 0.03, 0.06])) == []


def test_age_counts_from_the_newest_version_seen(look):
    """A step whose newest rollouts come last in the file, after one that had newer ones already."""
    rollouts = by_age([0.05, 0.3], steps=6)
    backwards = [*rollouts[:16], *reversed(rollouts[16:])]
    assert grows(look, DriftWithAge, backwards).evidence["growth"].value > 4


def test_age_counts_from_the_newest_version_of_earlier_steps(look):
    """The second step has weights 4 alone, and the first had 5: they are one version old."""
    new = [drifting(i, np.full(100, 0.05), step=0, weight_versions=(5,) * 100) for i in range(40)]
    old = [drifting(100 + i, np.full(100, 0.3), step=1, weight_versions=(4,) * 100) for i in range(40)]
    assert grows(look, DriftWithAge, [*new, *old]).evidence["growth"].value == pytest.approx(6.0, rel=1e-4)


def by_step(levels, age=lambda step: 0, **fields):
    return [
        drifting(100 * step + i, np.full(50, level), step=step, weight_versions=(step - age(step),) * 50, **fields)
        for step, level in enumerate(levels)
        for i in range(8)
    ]


def test_steps_of_growing_drift(look):
    """First third .02, .021, .022; last third .06, .061, .062: 183/63 = 2.905 times."""
    got = grows(look, DriftWithStep, by_step([0.02, 0.021, 0.022, 0.03, 0.04, 0.05, 0.06, 0.061, 0.062]))
    assert got.evidence["growth"] == pytest.approx(183 / 63, rel=1e-4)
    assert got.where.steps[0] == 8
    assert "at equal age" in got.headline


@pytest.mark.parametrize("levels", [
    [0.02, 0.06, 0.02, 0.06, 0.02, 0.02, 0.06, 0.06, 0.06],  # 1.8 times, up and down: S = 15 - 5 = 10, z = 9/9.6
    [0.02, 0.021, 0.022, 0.023, 0.024, 0.025, 0.026, 0.027, 0.028],  # steady, but by a third only
    [0.02, 0.03, 0.04, 0.06, 0.08],  # five steps
    [0.06, 0.05, 0.04, 0.03, 0.02, 0.01, 0.01],  # falling
])  # fmt: skip
def test_steps_that_do_not_grow(look, levels):
    assert look(DriftWithStep, by_step(levels)) == []


def test_staleness_that_grows_is_no_growth_of_steps(look):
    """Drift .02 at age 0 and .06 at age 1 throughout; later steps have more old rollouts."""

    def rollouts(step):
        for i in range(12):
            old = i < step
            level, version = (0.06, step - 1) if old else (0.02, step)
            yield drifting(100 * step + i, np.full(100, level), step=step, weight_versions=(version,) * 100)

    run = [r for step in range(11) for r in rollouts(step)]
    assert look(DriftWithStep, run) == []
    unversioned = [Rollout(**{**r.__dict__, "weight_versions": None}) for r in run]
    assert "growing staleness would look the same" in grows(look, DriftWithStep, unversioned).meaning


def by_environment(**levels):
    return [
        drifting(1000 * number + i, np.full(60, level), environment=name)
        for number, (name, level) in enumerate(levels.items())
        for i in range(40)
    ]


def test_one_environment_drifts(look):
    got = grows(look, DriftByEnvironment, by_environment(mathematics=0.02, code=0.09, search=0.04))
    assert "'code'" in got.headline
    assert got.evidence["growth"].value == pytest.approx(3.0, rel=1e-4)  # .09 over (.02 + .04)/2
    assert got.evidence["KL, code"] == pytest.approx(np.cosh(0.09) - 1, rel=1e-3)


@pytest.mark.parametrize("levels", [{"a": 0.05}, {"a": 0.05, "b": 0.06, "c": 0.04}])
def test_environments_alike(look, levels):
    assert look(DriftByEnvironment, by_environment(**levels)) == []


def test_more_environments_than_are_told_apart(look):
    names = {f"game{i}": 0.01 for i in range(70)} | {"odd": 0.5}
    (got,) = look(DriftByEnvironment, by_environment(**names))
    assert "'others'" in got.headline


@pytest.mark.parametrize(("drift", "engine", "name"), [
    (0.2, -3.0, "KL per token"),  # cosh(.2) - 1 = .0201 > .015; |Δp| = e^-3 sinh(.2) = .01002 as well
    (0.04, -0.5, "mean difference"),  # e^-.5 sinh(.04) = .0243 > .01; KL .0008: a word only
    (0.06, -4.0, "mean exp"),  # e^.06 = 1.062 > 1.05; |Δp| = e^-4 sinh(.06) = .0011; KL .0018
])  # fmt: skip
def test_levels_against_the_wild(look, drift, engine, name):
    got = grows(look, DriftLevel, run(60, np.full(100, drift), engine=engine))
    assert got.headline.startswith(name)
    assert got.severity == ("info" if name == "mean difference" else "warning")
    values = [e.value for e in got.evidence.values()]
    assert values[0] == pytest.approx(np.cosh(drift) - 1, rel=1e-3)
    higher = np.exp(engine) * (1 - np.exp(-drift) + np.exp(drift) - 1) / 2
    assert values[1] == pytest.approx(higher, rel=1e-3)
    assert values[2] == pytest.approx(np.exp(drift), rel=1e-5)


def test_levels_of_a_healthy_run(look):
    assert look(DriftLevel, run(60, np.full(100, 0.04), engine=-2.0)) == []  # |Δp| .0054, exp 1.041, KL .0008


def test_a_few_wild_tokens_are_not_the_level(look):
    """Ten of 6,010 tokens at r = -8: e^8 each would make the mean 5.97; at most 10 each makes it 1.025, k3 .0116."""
    wild = [drifting(10**6 + i, [8.0], engine=-9.0) for i in range(10)]
    assert look(DriftLevel, [*run(60, np.full(100, 0.01)), *wild]) == []


def test_healthy_runs_show_none(look, healthy):
    for check in (DriftWithDepth, DriftWithTurn, DriftWithAge, DriftWithStep, DriftByEnvironment, DriftLevel):
        assert look(check, healthy(turns=3)) == []
