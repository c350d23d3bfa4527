"""Sums by step, length, environment and position against plain loops; intervals that cover; bounded memory."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.measure.statistics.running import DEPTHS, ESTIMATORS, MOST_ENVIRONMENTS, Statistics
from holdfast.audit.measure.statistics.tables import MOST_KEYS, OTHERS, Quantiles, StepTable
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import pack
from holdfast.types import Rollout


def bounds_of(rng, length):
    """TV between two numbers of every size, so that all verdicts occur; KL of at least 2 TV² and the exact one."""
    low = 0.1 * rng.random() ** 2 + rng.exponential(0.01, length)
    high = low + rng.exponential(0.02, length) * (rng.random() < 0.7)
    kl = 2 * low**2 * (1 + rng.random(length))
    exact = kl + rng.exponential(0.01, length)
    columns = {"kl_lower": kl, "tv_lower": low, "tv_upper": high, "kl_exact": exact}
    return {name: tuple(values.tolist()) for name, values in columns.items()}


def logged(rng, number, **fields):
    length = int(rng.integers(1, 40))
    engine = -rng.exponential(1, length)
    trainer = np.minimum(engine + rng.normal(0, 0.1, length), 0)
    own = rng.random(length) < 0.8
    given = {
        "response_mask": tuple(own.tolist()),
        **bounds_of(rng, length),
        "trust_mask": tuple((rng.random(length) < 0.98).tolist()),
        "reward": float(rng.random()),
        "step": number // 20,
        "group_id": number // 4,
        "environment": "abc"[number % 3],
    }
    return Rollout((number // 4, 1), (1,) * length, tuple(engine.tolist()), tuple(trainer.tolist()), **(given | fields))


def measured(rollouts, tokens=300):
    statistics, first = Statistics(), 0
    for chunk in pack(rollouts, tokens):
        statistics.update(View(chunk, first))
        first += len(chunk)
    return statistics


@pytest.fixture(scope="module")
def rollouts():
    rng = np.random.default_rng(0)
    return [logged(rng, number) for number in range(200)]


def tokens_of(rollouts):
    """(rollout, position, log-ratio) of every own token, one by one."""
    for rollout in rollouts:
        for place, own in enumerate(rollout.response_mask):
            if own:
                ratio = rollout.trainer_logprobs[place] - rollout.rollout_logprobs[place]
                yield rollout, place, ratio


FORMULAS = {
    "k1": lambda r: -r,
    "k2": lambda r: r * r / 2,
    "k3": lambda r: np.exp(r) - 1 - r,
    "abs_log": abs,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_means_over_everything(rollouts, name):
    mean = measured(rollouts).mean(name)
    expected = np.mean(
        [FORMULAS[name](r) if name in FORMULAS else getattr(rollout, name)[t] for rollout, t, r in tokens_of(rollouts)]
    )
    assert mean.value == pytest.approx(expected, rel=1e-5)
    assert mean.low <= mean.value <= mean.high
    assert mean.low < mean.high


def test_means_by_step_environment_and_length(rollouts):
    statistics = measured(rollouts)
    for table, key_of in (
        (statistics.by_step, lambda r: r.step),
        (statistics.by_environment, lambda r: r.environment),
        (statistics.by_length, lambda r: int(np.frexp(sum(r.response_mask))[1])),
    ):
        for key in {key_of(r) for r in rollouts}:
            here = [r for r in rollouts if key_of(r) == key]
            ratios = [abs(ratio) for _, _, ratio in tokens_of(here)]
            assert table.total("sequences", key) == len(here)
            assert table.total("tokens", key) == len(ratios)
            if ratios:
                assert table.mean("abs_log", "tokens", key).value == pytest.approx(np.mean(ratios), rel=1e-5)


def test_what_masks_keep_and_rewards(rollouts):
    statistics = measured(rollouts)
    judged = [r for r in rollouts if any(r.response_mask)]
    kept = [all(t or not own for t, own in zip(r.trust_mask, r.response_mask, strict=True)) for r in judged]
    within = [max(k for k, own in zip(r.kl_exact, r.response_mask, strict=True) if own) <= 0.05 for r in judged]
    assert 0 < np.mean(kept) < 1 and 0 < np.mean(within) < 1
    assert statistics.by_length.mean("accepted", "judged").value == pytest.approx(np.mean(kept))
    assert statistics.by_length.mean("within", "compared").value == pytest.approx(np.mean(within))
    assert statistics.by_length.mean("reward", "paid").value == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert statistics.rewards == pytest.approx((min(r.reward for r in rollouts), max(r.reward for r in rollouts)))


def test_without_exact_kl_the_published_threshold_is_on_k2():
    # k2 = r²/2: .3² / 2 = .045 is kept, .4² / 2 = .08 is not.
    pair = [Rollout((i,), (1,), (-1.0,), (-1.0 - drift,)) for i, drift in enumerate((0.3, 0.4))]
    assert measured(pair).by_length.mean("within", "compared").value == 0.5


def largest(rollout, name):
    return max(value for value, own in zip(getattr(rollout, name), rollout.response_mask, strict=True) if own)


def at_most(rollout):
    """TV at each own token by the bounds, or by √(KL/2) where that is known and smaller."""
    for high, kl, own in zip(
        rollout.tv_upper, rollout.kl_exact or rollout.tv_upper, rollout.response_mask, strict=True
    ):
        if own:
            yield min(high, (kl / 2) ** 0.5) if rollout.kl_exact else high


@pytest.mark.parametrize("exact", [True, False], ids=["with exact KL", "without"])
def test_what_bounds_prove_of_each_sequence(rollouts, exact):
    """δ = .05 for KL; for TV what a KL of δ allows at most, √(δ/2) = .158."""
    half = [dataclasses.replace(r, kl_exact=r.kl_exact if exact else None) for r in rollouts]
    half[::3] = [dataclasses.replace(r, kl_lower=None, tv_lower=None, tv_upper=None) for r in half[::3]]
    bounded = [r for r in half if r.kl_lower and any(r.response_mask)]
    by = ("kl_exact", "inside") if exact else ("kl_lower", "undecided")
    kl = ["outside" if largest(r, by[0]) > 0.05 else by[1] for r in bounded]
    edge = (0.05 / 2) ** 0.5
    tv = [
        "inside" if max(at_most(r)) <= edge else "outside" if largest(r, "tv_lower") > edge else "undecided"
        for r in bounded
    ]
    statistics = measured(half)
    assert [region.divergence for region in statistics.regions()] == ["kl", "tv"]
    for region, verdicts in zip(statistics.regions(), (kl, tv), strict=True):
        for name in ("inside", "outside", "undecided"):
            share = getattr(region, name)
            assert share.value == pytest.approx(verdicts.count(name) / len(bounded)), (region.divergence, name)
            assert share.low <= share.value <= share.high
    assert set(tv) == {"inside", "outside", "undecided"} and len(set(kl)) == 2
    assert statistics.regions()[1].threshold == pytest.approx(0.15811, abs=1e-5)
    low = [value for r, t, _ in tokens_of(bounded) for value in [r.tv_lower[t]]]
    assert statistics.mean("tv_lower").value == pytest.approx(np.mean(low), rel=1e-5)


def test_a_log_without_bounds_proves_nothing(rollouts):
    bare = [dataclasses.replace(r, kl_lower=None, tv_lower=None, tv_upper=None) for r in rollouts]
    assert measured(bare).regions() == () and measured(bare).mean("tv_upper") is None


def test_by_position(rollouts):
    statistics = measured(rollouts)
    for place in range(DEPTHS):
        inside = [abs(ratio) for _, at, ratio in tokens_of(rollouts) if int(np.frexp(at)[1]) == place]
        assert statistics.by_depth.count()[place] == len(inside)
        if inside:
            assert statistics.by_depth.mean()[place] == pytest.approx(np.mean(inside), rel=1e-5)


def test_a_log_without_the_trainer_measures_no_drift(rollouts):
    lone = [Rollout(r.prompt_ids, r.response_ids, r.rollout_logprobs, environment="a") for r in rollouts[:10]]
    statistics = measured(lone)
    assert all(statistics.mean(name) is None for name in ESTIMATORS)
    assert statistics.sizes.quantile(0.5) is None
    assert statistics.by_environment.total("sequences", "a") == 10


def test_thousands_of_steps_share_rows_and_lose_nothing():
    table = StepTable(("tokens",))
    steps = np.arange(3 * MOST_KEYS)
    for part in np.array_split(steps, 7):
        table.add_steps(part, part % FOLDS, {"tokens": part + 1.0})
    assert len(table.sums) <= MOST_KEYS
    assert table.width == 4
    assert table.total("tokens") == (steps + 1.0).sum()
    assert table.total("tokens", 8) == 9 + 10 + 11 + 12
    assert sorted(table.sums) == list(range(0, 3 * MOST_KEYS, 4))
    assert table.total("tokens", 1532) == 1533 + 1534 + 1535 + 1536


def test_environments_beyond_the_most_are_taken_together():
    rng = np.random.default_rng(1)
    many = [logged(rng, n, environment=f"e{n}") for n in range(MOST_ENVIRONMENTS + 5)]
    table = measured(many).by_environment
    assert len(table.sums) == MOST_ENVIRONMENTS + 1
    assert table.total("sequences", OTHERS) == 5


def test_quantiles_are_exact_to_their_resolution():
    rng = np.random.default_rng(2)
    values = np.abs(rng.standard_t(3, 20_000)).astype(np.float32)
    kept = Quantiles()
    for part in np.array_split(np.arange(len(values)), 5):
        kept.add(values[part], part % FOLDS)
    for share in (0.5, 0.9, 0.999):
        found = kept.quantile(share)
        assert found.value == pytest.approx(np.quantile(values, share), rel=0.035)
        assert found.low <= found.value <= found.high
    assert kept.largest == pytest.approx(values.max())
    at, above = kept.above()
    middle = np.searchsorted(at, 1.0)
    assert above[middle] == pytest.approx((values > at[middle]).mean(), abs=0.02)


def test_intervals_cover_the_truth_where_prompts_differ():
    """Prompts of very different drift: an interval over tokens would be several times too narrow."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rollouts = []
        for prompt in range(50):
            level = rng.exponential(0.1)
            for _ in range(4):
                drift = rng.exponential(level, 20)
                trainer = tuple((-3 - drift).tolist())
                rollouts.append(Rollout((prompt,), (1,) * 20, (-3.0,) * 20, trainer, group_id=prompt, step=0))
        mean = measured(rollouts, 10_000).mean("abs_log")
        covered += mean.low <= 0.1 <= mean.high
    assert covered >= 48  # 57 expected at 95 %, 54 at the bootstrap's usual 90 % for 50 skewed units
