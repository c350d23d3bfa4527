"""Certificates: hand-worked numbers, kinds, coverage over simulated data sets, words."""

import json
import math
from dataclasses import replace

import pytest
import torch

from holdfast.core.certificate import certify, certify_rollouts
from holdfast.core.confidence import Confidence
from holdfast.errors import ConfigError, DataError
from holdfast.types import Batch, Rollout, TokenStats


class World:
    """A pair of policies over V^T responses with a fixed reward: samples, and the truth that samples do not know."""

    def __init__(self, horizon=3, vocabulary=3, scale=0.3, seed=0, follow_reward=0.0):
        g = torch.Generator().manual_seed(seed)
        leaves = vocabulary**horizon
        self.reward = torch.rand(leaves, generator=g, dtype=torch.float64).round()
        self.p = torch.ones(1, dtype=torch.float64)
        columns = []
        for t in range(horizon):
            logits = torch.randn(vocabulary**t, vocabulary, generator=g, dtype=torch.float64)
            change = scale * torch.randn(logits.shape, generator=g, dtype=torch.float64)
            better = self.reward.reshape(vocabulary**t, vocabulary, -1).mean(-1)
            p, q = logits.log_softmax(-1), (logits + change + follow_reward * better).log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1, keepdim=True).expand_as(p)
            tv = 0.5 * (p.exp() - q.exp()).abs().sum(-1, keepdim=True).expand_as(p)
            repeat = leaves // p.numel()
            columns.append([x.reshape(-1).repeat_interleave(repeat) for x in (p, q, kl, tv)])
            self.p = (self.p[:, None] * p.exp()).reshape(-1)
        self.logp, self.logq, self.kl, self.tv = (torch.stack(c, -1) for c in zip(*columns, strict=True))
        ratio = (self.logq - self.logp).exp()
        self.true_gain = (self.p * self.reward * (ratio - 1).sum(-1)).sum().item()
        self.true_improvement = (self.p * self.reward * (ratio.prod(-1) - 1)).sum().item()
        self.seq_kl = (self.p * self.kl.sum(-1)).sum().item()

    def sample(self, count, seed, *, exact=True, upper=False):
        rows = torch.multinomial(self.p, count, replacement=True, generator=torch.Generator().manual_seed(seed))
        shape = (count, self.kl.shape[1])
        batch = Batch(torch.zeros(count), torch.ones(shape, dtype=torch.bool), rollout_logprobs=self.logp[rows])
        stats = TokenStats(
            self.logq[rows],
            kl_rollout=self.kl[rows] if exact else None,
            tv_rollout_upper=self.tv[rows] if upper else None,
        )
        return batch, stats, self.reward[rows]


def test_a_good_update_is_certified_and_the_claim_is_true():
    world = World(scale=0.02, follow_reward=0.3)
    found = certify(*world.sample(2000, 1))
    assert found.certified
    assert 0 < found.improvement <= world.true_improvement
    assert found.bound == min(found.bounds, key=lambda name: found.bounds[name].upper)
    assert found.bounds["sequence_kl"].upper >= world.seq_kl
    assert found.gain.lower <= world.true_gain <= found.gain.upper
    assert found.verdict.startswith("Improvement certified at 0.95: the expected reward rises by at least")
    assert found.missing == ()
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_missing_is_said():
    few = certify(*World(scale=0.2, follow_reward=0.5).sample(20, 2))
    assert not few.certified
    assert few.missing[0].startswith("more samples: about")
    # Σ(ρ - 1) = ±.3 with the reward gives a gain of .15; TV 1 at every context allows a path of about .3.
    rewards = torch.arange(200) % 2.0
    log_ratio = ((2 * rewards - 1)[:, None] * torch.full((200, 3), 0.1)).double()
    batch = Batch(torch.zeros(200), torch.ones(200, 3, dtype=torch.bool), rollout_logprobs=torch.full((200, 3), -1.0))
    wild = TokenStats(log_ratio - 1, kl_rollout=torch.full((200, 3), 5.0))
    assert "smaller drift: the error may be 0.296 where the gain is 0.151" in certify(batch, wild, rewards).missing[0]
    harmful = World(scale=0.02, follow_reward=-0.3)
    assert "a gain" in certify(*harmful.sample(2000, 1)).missing[0]


def test_an_estimate_or_a_lower_bound_never_certifies():
    batch, stats, rewards = World(scale=0.02, follow_reward=0.3).sample(2000, 1, exact=False)
    lower = TokenStats(stats.logprobs, kl_rollout_lower=torch.zeros(2000, 3), tv_rollout_lower=torch.zeros(2000, 3))
    for unfit in (stats, lower):
        found = certify(batch, unfit, rewards)
        assert not found.certified
        assert found.bound is None
        assert found.bounds == {}
        assert found.improvement == -math.inf
        assert "exact divergences" in found.missing[0]
        assert found.to_dict()["improvement"] is None
        assert not certify(batch, unfit, rewards, mask="token", threshold=0.1).certified


def test_an_upper_bound_of_tv_alone_certifies_by_the_path():
    found = certify(*World(scale=0.01, follow_reward=0.1).sample(6000, 1, exact=False, upper=True))
    assert found.bound == "path"
    assert found.certified


def test_numbers_by_hand():
    # Two rollouts of one token, ρ = (2, ½), R = (1, 0), KL = (.2, .4); baselines are the other rollout's reward,
    # (0, 1): gains (1 - 0)·1 = 1 and (0 - 1)·(-½) = ½, mean .75. seq_kl mean .3. One token: path 0, error terms 0.
    # W = (2, ½): effective sample size 2.5² / 4.25 = 1.470588.
    log_ratio = torch.tensor([[2.0], [0.5]], dtype=torch.float64).log()
    batch = Batch(
        torch.zeros(2), torch.ones(2, 1, dtype=torch.bool), rollout_logprobs=torch.full((2, 1), -1.0).double()
    )
    stats = TokenStats(log_ratio - 1, kl_rollout=torch.tensor([[0.2], [0.4]], dtype=torch.float64))
    found = certify(batch, stats, torch.tensor([1.0, 0.0]))
    assert found.gain.estimate == pytest.approx(0.75)
    assert found.inputs["seq_kl"].estimate == pytest.approx(0.3)
    assert found.bounds["path"].upper == 0
    assert found.error_estimate.estimate == pytest.approx(0)
    assert found.effective_sample_size == pytest.approx(6.25 / 4.25)
    # The same with rewards from -3 to 5: everything in reward units is 8 times as large.
    wide = certify(batch, stats, torch.tensor([5.0, -3.0]), reward_range=(-3.0, 5.0))
    assert wide.gain.estimate == pytest.approx(6.0)
    assert wide.bounds["sequence_kl"].estimate == pytest.approx(2.4)
    # One prompt for both would leave a single unit.
    with pytest.raises(DataError, match="at least 2"):
        certify(batch, stats, torch.tensor([1.0, 0.0]), group_ids=torch.tensor([7, 7]))


@pytest.mark.parametrize("mask", ["token", "prefix", "sequence"])
def test_masked_certificate_survives_one_terrible_context(mask):
    """A rare context with enormous drift ruins the plain certificate and costs the masked one its probability."""
    world = World(horizon=3, vocabulary=4, scale=0.01, follow_reward=0.3, seed=5)
    batch, stats, rewards = world.sample(6000, 2)
    rare = torch.zeros(6000, dtype=torch.bool)
    rare[:40] = True
    kl = torch.where(rare[:, None], torch.tensor([0.0, 900.0, 0.0]).double(), stats.kl_rollout)
    stats = TokenStats(stats.logprobs, kl_rollout=kl)
    quick = Confidence(resamples=200)
    plain = certify(batch, stats, rewards, confidence=quick)
    masked = certify(batch, stats, rewards, confidence=quick, mask=mask, threshold=1.0)
    assert plain.bounds["sequence_kl"].estimate > 5  # 40 · 900 / 6000 = 6
    assert masked.certified
    assert masked.bound == f"{mask}_mask"
    # 40 hits of 6000 = .0067; n · kl(.0067‖q) = log(3/.05) gives q = .0099 (log(4/.05): .0101).
    assert 0.0095 < masked.inputs["hit"].upper < 0.0105
    assert masked.bounds[masked.bound].upper > masked.inputs["seq_kl"].upper + masked.inputs["hit"].upper


def test_no_hit_is_not_a_proof_of_none():
    # No bad context among n = 500 units, error .05/3: q = 1 - (.05/3)^(1/500) = .0081555.
    found = certify(*World(scale=0.02).sample(500, 2), mask="prefix", threshold=1.0)
    assert found.inputs["hit"].estimate == 0
    assert found.inputs["hit"].upper == pytest.approx(1 - (0.05 / 3) ** (1 / 500), rel=1e-6)
    # At the estimates, S + q with -log(1 - q) = S.
    drift = found.inputs["seq_kl"].estimate
    assert found.bounds["prefix_mask"].estimate == pytest.approx(drift + 1 - math.exp(-drift), rel=1e-6)


@pytest.mark.parametrize(("scale", "count"), [(0.3, 60), (1.0, 120)])
def test_coverage_over_simulated_data_sets(scale, count):
    """1,000 data sets in all: a 95 % certificate (any claim it rests on) is wrong in at most 5 % of them."""
    world = World(scale=scale, follow_reward=0.3, seed=3)
    wrong = false_claims = 0
    for seed in range(500):
        found = certify(*world.sample(count, 10_000 + seed), confidence=Confidence(resamples=200, seed=seed))
        wrong += found.gain.lower > world.true_gain or found.inputs["seq_kl"].upper < world.seq_kl
        false_claims += found.improvement > world.true_improvement
    assert wrong <= 25
    assert false_claims <= 25


def test_coverage_would_notice_limits_that_are_too_tight():
    """The same count with 60 % limits instead of 95 % must be wrong far more often than 5 %."""
    world = World(scale=1.0, follow_reward=0.3, seed=3)
    wrong = 0
    for seed in range(100):
        found = certify(*world.sample(60, seed), confidence=Confidence(level=0.6, resamples=400, seed=seed))
        wrong += found.gain.lower > world.true_gain or found.inputs["seq_kl"].upper < world.seq_kl
    assert wrong > 15


def test_bootstrap_limits_lean_to_the_long_side():
    """Drift is skewed to the right: its mean may well lie far above the sample's, and hardly below."""
    units = -torch.log1p(-torch.arange(40).double() / 40)  # quantiles of an exponential distribution
    limits = Confidence(resamples=2000).limits({"x": units}, 1)["x"]
    assert limits.upper - limits.estimate > 1.2 * (limits.estimate - limits.lower) > 0
    normal = 1.645 * units.std().item() / math.sqrt(40)
    assert limits.upper - limits.estimate > normal > limits.estimate - limits.lower


def test_bernstein_limits_by_hand():
    # Units (0, 1, 0, 1)·.5, ceiling 1, error .05: mean .25, variance 1/12; log(2/.05) = 3.688879;
    # margin √(2 · .083333 · 3.688879 / 4) + 7 · 3.688879 / 9 = .392053 + 2.869128.
    limits = Confidence(method="bernstein", ceiling=1.0).limits({"x": torch.tensor([0.0, 0.5, 0.0, 0.5])}, 1)["x"]
    assert limits.upper == pytest.approx(0.25 + 3.261181, rel=1e-5)
    assert limits.lower == pytest.approx(0.25 - 3.261181, rel=1e-5)


def test_bernstein_is_wider_and_needs_its_ceiling():
    world = World(scale=0.05, follow_reward=0.1)
    sample = world.sample(3000, 1)
    wide = certify(*sample, confidence=Confidence(method="bernstein", ceiling=2.0))
    narrow = certify(*sample)
    assert wide.inputs["seq_kl"].upper > narrow.inputs["seq_kl"].upper >= world.seq_kl
    assert "no rollout's drift sums to more than 2" in wide.assumptions
    with pytest.raises(DataError, match="outside the range that the ceiling"):
        certify(*sample, confidence=Confidence(method="bernstein", ceiling=1e-4))


def test_groups_are_the_units():
    batch, stats, rewards = World(scale=0.2).sample(400, 1)
    by_prompt = certify(batch, stats, rewards, group_ids=torch.arange(400) // 8)
    assert (by_prompt.units, by_prompt.rollouts) == (50, 400)
    # A baseline that saw its own rollout would shrink the gain by 1 - 1/8; leave-one-out keeps it unbiased.
    total = rewards.reshape(50, 8).sum(-1, keepdim=True)
    baseline = ((total - rewards.reshape(50, 8)) / 7).reshape(-1)
    ratio = (stats.logprobs - batch.rollout_logprobs).exp()
    expected = ((rewards - baseline) * (ratio - 1).sum(-1)).mean()
    assert by_prompt.gain.estimate == pytest.approx(expected.item(), rel=1e-9)


def rollout(log_ratio, kl, reward):
    n = len(log_ratio)
    return Rollout(
        prompt_ids=(1,),
        response_ids=tuple(range(n)),
        rollout_logprobs=(-1.0,) * n,
        trainer_logprobs=tuple(x - 1 for x in log_ratio),
        kl_exact=kl,
        reward=reward,
    )


def test_logged_rollouts_of_different_lengths():
    # seq_kl (.3 + .4) / 2; gains with baselines (0, 1): Σ(ρ - 1) = (1 - ½, -½) -> ½ and (0 - 1)(-½) = ½.
    records = [rollout((math.log(2), -math.log(2)), (0.1, 0.2), 1.0), rollout((-math.log(2),), (0.4,), 0.0)]
    found = certify_rollouts(records)
    assert found.inputs["seq_kl"].estimate == pytest.approx(0.35)
    assert found.gain.estimate == pytest.approx(0.5)
    without = certify_rollouts([rollout((0.1,), None, 1.0), rollout((0.1,), (0.1,), 0.0)])
    assert without.bound is None


def test_an_upper_bound_of_tv_certifies_and_a_lower_bound_of_kl_does_not():
    # path: Σ_t |ρ_t - 1| Σ_{k>t} TV_k Π_{t<s<k} min(1, ρ_s) = |2 - 1| · .3 = .3 and, with one token, 0: mean .15.
    # The lower bounds would give smaller numbers: |2 - 1| · .2, or √(.02/2) = .1.
    bounds = {"kl_lower": (0.01, 0.02), "tv_lower": (0.05, 0.2), "tv_upper": (0.1, 0.3)}
    records = [
        replace(rollout((math.log(2), -math.log(2)), None, 1.0), **bounds),
        replace(rollout((-math.log(2),), None, 0.0), **{name: values[:1] for name, values in bounds.items()}),
    ]
    found = certify_rollouts(records)
    assert set(found.bounds) == {"path"} and found.bounds["path"].estimate == pytest.approx(0.15)
    partly = certify_rollouts([replace(records[0], kl_lower=None, tv_lower=None, tv_upper=None), records[1]])
    assert partly.bound is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": None}, "1 of 2 rollouts have no reward"),
        ({"trainer_logprobs": None}, "no trainer_logprobs"),
        ({"kl_exact": (0.1, 0.2)}, "1 response tokens and a field with 2"),
    ],
)
def test_unusable_logs_are_named(changes, words):
    with pytest.raises(DataError, match=words):
        certify_rollouts([rollout((0.1,), (0.1,), 1.0), replace(rollout((0.1,), (0.1,), 1.0), **changes)])


def test_no_rollouts_at_all():
    with pytest.raises(DataError, match="0 of 0 rollouts"):
        certify_rollouts([])


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (DataError, {"rewards": torch.tensor([2.0, 0.0])}, "outside reward_range"),
        (DataError, {"rewards": torch.tensor([1.0])}, "one reward per rollout"),
        (ConfigError, {"mask": "token"}, "a mask needs a KL above 0"),
        (ConfigError, {"threshold": 0.1}, "'none' needs None"),
        (ConfigError, {"reward_range": (1.0, 1.0)}, "lower end below"),
        (DataError, {"group_ids": torch.tensor([1])}, "group_ids has 1 entries"),
    ],
)
def test_bad_input_is_named(error, changes, words):
    batch = Batch(torch.zeros(2), torch.ones(2, 1, dtype=torch.bool), rollout_logprobs=torch.zeros(2, 1))
    inputs = {"rewards": torch.tensor([1.0, 0.0])} | changes
    with pytest.raises(error, match=words):
        certify(batch, TokenStats(torch.zeros(2, 1)), **inputs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": 0.0}, "between 0 and 1"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"level": math.nan}, "between 0 and 1"),
        ({"method": "bernstein"}, "needs it"),
        ({"ceiling": 1.0}, "takes none"),
        ({"method": "bernstein", "ceiling": -1.0}, "above 0"),
        ({"resamples": 10}, "200 and more"),
    ],
)
def test_bad_confidence_is_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Confidence(**settings)
