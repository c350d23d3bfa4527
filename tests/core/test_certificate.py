"""Certificates: hand-worked numbers, kinds, refusals, coverage over simulated data sets, words."""

import json
import math
from dataclasses import replace

import pytest
import torch

from holdfast.core.betting import EProcess
from holdfast.core.bounds_measured import SampledDrift
from holdfast.core.certificate import certify, certify_rollouts, prompt_gains
from holdfast.core.confidence import Confidence
from holdfast.core.improvement import clipped_gain, compensated_gain
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


def unseen_mass(seed, count=200, kl=None):
    """θ moves .3 of its mass to a token that p writes once in 10,000 times: J falls by .06."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.4999, 1e-4], [0.5, 0.2, 0.3]))
    rows = torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    exact = (p * (p / q).log()).sum().item() if kl is None else kl
    batch = Batch(torch.zeros(count), torch.ones(count, 1, dtype=torch.bool), rollout_logprobs=p.log()[rows][:, None])
    stats = TokenStats(q.log()[rows][:, None], kl_rollout=torch.full((count, 1), exact).double())
    return batch, stats, torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)[rows]


def test_mass_that_no_rollout_shows_is_never_certified():
    """Truth: .5 + .2 · .2 - (.5 + .2 · .4999) = -.06; the surrogate of what is seen is about +.09."""
    for seed in range(20):
        batch, stats, rewards = unseen_mass(seed)
        found = certify(batch, stats, rewards, confidence=Confidence(resamples=400))
        assert not found.certified and found.improvement <= 0
        assert found.evidence.lower <= -0.06 + 1e-12
        if batch.rollout_logprobs.exp().min() > 0.1:  # the rare token is absent
            # Σ KL = .5 log 1 + .4999 log(.4999/.2) + 1e-4 log(1e-4/.3) = .45715; the seen k3 averages .158.
            assert found.kl_comparison.difference.estimate == pytest.approx(0.3, abs=0.03)
        if found.kl_comparison.unseen:
            assert "of the 0.457 nats of KL per rollout sit on tokens missing from them" in found.verdict
        sampled = certify(batch, TokenStats(stats.logprobs), rewards)
        assert not sampled.certified and sampled.variable == "clipped"
    refused = sum(
        certify(*unseen_mass(seed), confidence=Confidence(resamples=400)).kl_comparison.unseen > 0.2
        for seed in range(20)
    )
    assert refused >= 18


def test_exact_kl_that_the_rollouts_contradict_certifies_nothing():
    """Too small a KL makes every update look safe: a log whose kl_exact was overwritten."""
    world = World(scale=0.1, follow_reward=0.3)
    batch, stats, rewards = world.sample(2000, 1)
    assert certify(batch, stats, rewards).certified
    found = certify(batch, replace(stats, kl_rollout=torch.full_like(stats.kl_rollout, 1e-9)), rewards)
    assert not found.certified and found.improvement == -math.inf
    assert found.kl_comparison.contradicted
    assert found.verdict.startswith("Improvement not certified at 0.95. Missing: KL of these two policies: it averages")


def test_a_good_update_is_certified_and_the_claim_is_true():
    world = World(scale=0.02, follow_reward=0.3)
    found = certify(*world.sample(2000, 1))
    assert found.certified and found.variable == "compensated"
    assert 0 < found.improvement <= world.true_improvement
    assert found.improvement == found.evidence.lower < found.evidence.estimate < found.evidence.upper
    assert found.bounds["sequence_kl"].upper >= world.seq_kl
    assert found.gain.lower <= world.true_gain <= found.gain.upper
    assert found.missing == ()
    json.dumps(found.to_dict(), allow_nan=False)


def test_assumptions_come_first_and_in_words():
    sample = World(scale=0.02, follow_reward=0.3).sample(2000, 1)
    lone = certify(*sample)
    assert lone.verdict.startswith(
        "Provided that the current policy was not trained, chosen or stopped on these rollouts; that each of the 2000 "
        "rollouts has a prompt of its own, drawn independently (no group_ids were given"
    )
    assert "no prompt or answer rarer than 0.0015 (3/n) decides" in lone.verdict
    assert lone.verdict.endswith(
        f"improvement certified at 0.95. The expected reward rises by at least {lone.improvement:.3g} against the "
        "policy that sampled these rollouts."
    )
    grouped = certify(*sample, group_ids=torch.arange(2000) // 8)
    assert "that the 250 prompts were drawn independently" in grouped.verdict
    assert "rarer than 0.012 (3/n)" in grouped.verdict
    same = certify(*sample, group_ids=torch.zeros(2000, dtype=torch.long))
    assert same.units == 2000 and "rollouts of its one prompt stand for that prompt alone" in same.verdict
    assert all(text in found.verdict for found in (lone, grouped, same) for text in found.assumptions)


def test_what_is_missing_is_said():
    few = certify(*World(scale=0.2, follow_reward=0.5).sample(20, 2))
    assert not few.certified
    assert few.missing[0].startswith("more samples: about")
    world = World(scale=1.0, follow_reward=1.0, seed=1)
    drifting = certify(*world.sample(2000, 1))
    assert drifting.gain.estimate > 0 > drifting.evidence.estimate
    assert drifting.missing[0].startswith("smaller drift: it may cost")
    harmful = World(scale=0.02, follow_reward=-0.3)
    assert "a gain" in certify(*harmful.sample(2000, 1)).missing[0]
    small = certify(*World(scale=0.02, follow_reward=0.3).sample(19, 1))
    assert small.missing[0] == "prompts: 19 independent ones were given, limits from the bootstrap need at least 20"
    assert small.improvement == -math.inf


def test_sampled_log_probabilities_certify_by_betting_alone():
    world = World(scale=0.02, follow_reward=1.0)
    batch, stats, rewards = world.sample(2000, 1, exact=False)
    found = certify(batch, stats, rewards)
    assert (found.variable, found.kl_comparison, found.bounds) == ("clipped", None, {})
    assert found.certified and 0 < found.improvement <= world.true_improvement
    assert found.to_dict()["evidence"]["upper"] is None
    assert "rarer than" not in found.verdict  # right for any number of prompts
    # Neither lower bounds of KL nor upper bounds of TV change it: path is a commentary.
    lower = replace(stats, kl_rollout_lower=torch.zeros(2000, 3), tv_rollout_lower=torch.zeros(2000, 3))
    upper = replace(stats, tv_rollout_upper=world.sample(2000, 1, upper=True)[1].tv_rollout_upper)
    for other in (lower, upper):
        assert certify(batch, other, rewards).evidence == found.evidence
    assert set(certify(batch, upper, rewards).bounds) == {"path"}
    # E_n against its definition, from the rollouts' own numbers.
    weight = (stats.logprobs - batch.rollout_logprobs).sum(-1).exp().clamp(max=10)
    test = EProcess().update(rewards * (weight - 1))
    assert test.lower() == pytest.approx(found.improvement, rel=1e-9)
    few = certify(*world.sample(12, 1, exact=False))
    assert few.missing[0].startswith("more samples: about")


def test_prompts_are_fed_to_the_betting_test_step_by_step():
    # ρ = (2, ½), (4), (11): W = 1, 4, 11 capped at 10. Rewards 1, -1, 3 of [-1, 3] are ½, 0, 1: ½ · 0, 0, 9.
    log_ratio = torch.tensor([[2.0, 0.5], [4.0, 1.0], [11.0, 1.0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    batch = Batch(torch.zeros(3), mask, rollout_logprobs=torch.zeros(3, 2).double() - 1)
    stats, rewards = TokenStats(log_ratio - 1), torch.tensor([1.0, -1.0, 3.0])
    units = prompt_gains(batch, stats, rewards, reward_range=(-1.0, 3.0))
    assert units.tolist() == pytest.approx([0, 0, 9])
    units = prompt_gains(batch, stats, rewards, group_ids=torch.tensor([5, 2, 5]), reward_range=(-1.0, 3.0))
    assert units.tolist() == pytest.approx([4.5, 0])
    assert prompt_gains(batch, stats, rewards, reward_range=(-1.0, 3.0), cap=3.0)[2] == pytest.approx(2)
    world, test = World(scale=0.02, follow_reward=1.0), EProcess()
    for step in range(40):
        test = test.update(prompt_gains(*world.sample(16, step)))
    assert test.certified and test.certified_at < 300 and test.lower() <= world.true_improvement


def test_numbers_by_hand():
    # Two rollouts of one token, ρ = (2, ½), R = (1, 0), KL = (.2, .4), baseline ½: gains ½ · 1 and -½ · -½, mean .375.
    # X = (1 - ½)(log 2 + .2) - (.2 - (1 - log 2))⁺ = .446574 and -½(-log 2 + .4) = .146574: mean .296574.
    # seq_kl mean .3. One token: path 0, error terms 0. W = (2, ½): effective sample size 2.5² / 4.25 = 1.470588.
    log_ratio = torch.tensor([[2.0], [0.5]], dtype=torch.float64).log()
    batch = Batch(
        torch.zeros(2), torch.ones(2, 1, dtype=torch.bool), rollout_logprobs=torch.full((2, 1), -1.0).double()
    )
    stats = TokenStats(log_ratio - 1, kl_rollout=torch.tensor([[0.2], [0.4]], dtype=torch.float64))
    found = certify(batch, stats, torch.tensor([1.0, 0.0]))
    assert found.gain.estimate == pytest.approx(0.375)
    assert found.evidence.estimate == pytest.approx(0.296574, abs=1e-6)
    # Σ k3 = 2 - 1 - log 2 = .306853 and ½ - 1 + log 2 = .193147, mean .25: KL less k3 is .05.
    assert found.kl_comparison.difference.estimate == pytest.approx(0.05, abs=1e-6)
    assert found.inputs["seq_kl"].estimate == pytest.approx(0.3)
    assert found.bounds["path"].upper == 0
    assert found.error_estimate.estimate == pytest.approx(0)
    assert found.effective_sample_size == pytest.approx(6.25 / 4.25)
    # The same with rewards from -3 to 5: everything in reward units is 8 times as large.
    wide = certify(batch, stats, torch.tensor([5.0, -3.0]), reward_range=(-3.0, 5.0))
    assert wide.gain.estimate == pytest.approx(3.0)
    assert wide.evidence.estimate == pytest.approx(8 * 0.296574, abs=1e-5)
    assert wide.bounds["sequence_kl"].estimate == pytest.approx(2.4)
    # X': 1 · (2 - 1) and 0.
    assert certify(batch, TokenStats(log_ratio - 1), torch.tensor([1.0, 0.0])).evidence.estimate == pytest.approx(0.5)
    with pytest.raises(DataError, match="at least 2"):
        certify(batch.select(slice(1)), stats.select(slice(1)), torch.tensor([1.0]))


def test_compensated_gain_by_hand():
    # ρ = (2, 3, ½), R = .8, KL = (.1, .9, .2): log W = log 3, K = 1.2, k3(W) = 2 - log 3 = .901388.
    # X = .3 (1.098612 + 1.2) - .8 (1.2 - .901388) = .689584 - .238890 = .450694.
    # Bad above .5: only ρ_1 counts and the reward is lost: -.5 (log 2 + .1) - .8 = -1.196574.
    rho = torch.tensor([[2.0, 3.0, 0.5]], dtype=torch.float64)
    kl = torch.tensor([[0.1, 0.9, 0.2]], dtype=torch.float64)
    drift = SampledDrift(rho.log(), torch.ones(1, 3, dtype=torch.bool), kl=kl)
    reward = torch.tensor([0.8], dtype=torch.float64)
    assert compensated_gain(drift, reward).item() == pytest.approx(0.450694, abs=1e-6)
    assert compensated_gain(drift, reward, 0.5).item() == pytest.approx(-1.196574, abs=1e-6)
    assert compensated_gain(drift, reward, 0.9).item() == pytest.approx(0.450694, abs=1e-6)
    # W = 3: R (min(W, c) - 1) = .8 · 2, and .8 · 1 at a cap of 2.
    assert clipped_gain(rho.log(), reward).item() == pytest.approx(1.6)
    assert clipped_gain(rho.log(), reward, 2.0).item() == pytest.approx(0.8)
    with pytest.raises(ConfigError, match=r"cap is 1\.0, allowed is above 1"):
        clipped_gain(rho.log(), reward, 1.0)
    with pytest.raises(DataError, match="kl_rollout was not measured"):
        compensated_gain(replace(drift, kl=None), reward)


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
    assert not plain.certified
    assert masked.certified
    assert 0 < masked.improvement < world.true_improvement
    assert set(masked.bounds) == {f"{mask}_mask"}
    # 40 hits of 6000 = .0067; n · kl(.0067‖q) = log(3/.05) gives q = .0099 (log(4/.05): .0101).
    assert 0.0095 < masked.inputs["hit"].upper < 0.0105
    assert masked.bounds[f"{mask}_mask"].upper > masked.inputs["seq_kl"].upper + masked.inputs["hit"].upper


def test_no_hit_is_not_a_proof_of_none():
    # No bad context among n = 500 units, error .05/3: q = 1 - (.05/3)^(1/500) = .0081555.
    found = certify(*World(scale=0.02).sample(500, 2), mask="prefix", threshold=1.0)
    assert found.inputs["hit"].estimate == 0
    assert found.inputs["hit"].upper == pytest.approx(1 - (0.05 / 3) ** (1 / 500), rel=1e-6)
    # At the estimates, S + q with -log(1 - q) = S.
    drift = found.inputs["seq_kl"].estimate
    assert found.bounds["prefix_mask"].estimate == pytest.approx(drift + 1 - math.exp(-drift), rel=1e-6)


@pytest.mark.parametrize(("scale", "count"), [(0.3, 60), (1.0, 120)])
@pytest.mark.slow
def test_coverage_over_simulated_data_sets(scale, count):
    """1,000 data sets in all: at 95 %, the claim is wrong in at most 5 % of them, and so is the commentary."""
    world = World(scale=scale, follow_reward=0.3, seed=3)
    wrong = false_claims = 0
    for seed in range(500):
        found = certify(*world.sample(count, 10_000 + seed), confidence=Confidence(resamples=200, seed=seed))
        wrong += found.gain.lower > world.true_gain or found.inputs["seq_kl"].upper < world.seq_kl
        false_claims += found.evidence.lower > world.true_improvement
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


def test_groups_are_the_units():
    batch, stats, rewards = World(scale=0.2).sample(400, 1)
    by_prompt = certify(batch, stats, rewards, group_ids=torch.arange(400) // 8)
    assert (by_prompt.units, by_prompt.rollouts, by_prompt.kl_comparison.units) == (50, 400, 50)
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
    # seq_kl (.3 + .4) / 2; gains with the baseline ½: Σ(ρ - 1) = (1 - ½, -½) -> ½ · ½ and -½ · -½.
    records = [rollout((math.log(2), -math.log(2)), (0.1, 0.2), 1.0), rollout((-math.log(2),), (0.4,), 0.0)]
    found = certify_rollouts(records)
    assert found.inputs["seq_kl"].estimate == pytest.approx(0.35)
    assert found.gain.estimate == pytest.approx(0.25)
    assert found.assumptions[1] == "the 2 rollouts of its one prompt stand for that prompt alone"
    without = certify_rollouts([rollout((0.1,), None, 1.0), rollout((0.1,), (0.1,), 0.0)])
    assert without.variable == "clipped"


def test_prompts_are_found_where_no_group_is_logged():
    """Grouped rollouts without group_id are one unit per prompt and step; a group's number counts within its step."""
    one = rollout((0.1,), (0.1,), 1.0)
    records = [replace(one, prompt_ids=(i // 4,), step=1) for i in range(40)]
    assert certify_rollouts(records).units == 10
    again = [replace(r, step=2) for r in records]
    assert certify_rollouts(records + again).units == 20
    numbered = [replace(r, group_id=i // 4) for i, r in enumerate(records)]
    assert certify_rollouts(numbered + [replace(r, step=2) for r in numbered]).units == 20
    bare = [replace(r, prompt_ids=()) for r in records]
    assert certify_rollouts(bare).units == 40
    assert "no group_ids were given" in certify_rollouts(bare).assumptions[1]


def test_an_upper_bound_of_tv_bounds_and_a_lower_bound_of_kl_does_not():
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
    assert partly.bounds == {}


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
        ({"resamples": 10}, "200 and more"),
    ],
)
def test_bad_confidence_is_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Confidence(**settings)
