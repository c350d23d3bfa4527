"""Drift divided among its causes: each planted alone and in pairs, against what it is known to be made of."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from holdfast.audit.judge.attribution import Causes, attribute
from holdfast.audit.judge.attribution.causes import Q
from holdfast.audit.judge.attribution.shares import shares_of
from holdfast.audit.measure.adding import add_up
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import pack
from holdfast.audit.simulate.replay import Replay, floats
from holdfast.audit.simulate.run import clean_run
from holdfast.audit.simulate.world import CONTEXTS, COPIES, log_softmax

WITHIN = 0.1
"""How far a share may be from the truth."""


def causes_of(rollouts, parts=1):
    """The sums of a log that is read in that many parts."""
    found, number = None, 0
    size = -(-len(rollouts) // parts)
    for start in range(0, len(rollouts), size):
        causes = Causes()
        for chunk in pack(rollouts[start : start + size]):
            causes.update(View(chunk, number))
            number += len(chunk)
        found = add_up(found, causes)
    return found


def shares_in(rollouts):
    return {share.cause: share.share.value for share in attribute(causes_of(rollouts)).shares}


def planted(causes, seed=3):
    """A run with these causes of drift, and each one's own part of Σ r²/2 where it is alone."""
    world = {
        "noise": 0.05 if "numerics" in causes else 1e-3,
        "flips": 0.02 if "experts" in causes else 0.0,
        "top_p": 0.95 if "support" in causes else 1.0,
    }
    rollouts = clean_run(seed, age=1 if "staleness" in causes else 0, mean_length=100, steps=4, update=0.1, **world)
    replay = Replay.of(rollouts)
    where = np.arange(len(replay.ids))
    logits = replay.trainer_logits() * (1.05 if "temperature" in causes else 1.0)
    full = log_softmax(logits)
    support, copy = replay.world.support[replay.rows], replay.rows // CONTEXTS % COPIES
    trainer = full[replay.tokens, replay.ids]
    mass = np.log((np.exp(full[replay.tokens]) * support).sum(1))
    engine = np.concatenate([r.rollout_logprobs for r in rollouts])
    own = (replay.versions.repeat(replay.lengths)) * CONTEXTS + replay.tokens % CONTEXTS
    fresh = log_softmax(replay.trainer_logits())
    at_own, at_step = fresh[own, replay.ids], fresh[replay.tokens, replay.ids]
    parts = {
        "numerics": np.where(copy < COPIES - 1, at_own - engine - mass, 0),
        "experts": np.where(copy == COPIES - 1, at_own - engine - mass, 0),
        "staleness": at_step - at_own,
        "temperature": trainer - at_step,
        "support": mass if "support" in causes else 0 * mass,
    }
    if "disagreements" in causes:
        struck = (engine > np.log(0.9)) & (np.random.default_rng(0).random(len(where)) < 2e-3)
        trainer = trainer - 3.0 * struck
        parts["disagreements"] = -3.0 * struck
    entropy = -(np.exp(full) * full).sum(-1)[replay.tokens]
    size = support.sum(1)
    columns = {
        "trainer_logprobs": trainer,
        "entropy": entropy,
        "support_size": np.where(size == support.shape[1], 0, size),
        "experts_changed": 1 * (copy == COPIES - 1),
    }
    ends = np.cumsum(replay.lengths)
    out = []
    for rollout, start, end in zip(rollouts, ends - replay.lengths, ends, strict=True):
        cut = {
            name: floats(v[start:end]) if v.dtype.kind == "f" else tuple(v[start:end].tolist())
            for name, v in columns.items()
        }
        out.append(replace(rollout, **cut))
    truth = {name: float((part**2).sum()) for name, part in parts.items()}
    return out, {name: value / sum(truth.values()) for name, value in truth.items()}


ALONE = ("numerics", "temperature", "support", "experts", "disagreements", "staleness")


@pytest.mark.parametrize("causes", [*((one,) for one in ALONE), *itertools.combinations(ALONE, 2)], ids="+".join)
def test_each_cause_alone_and_in_pairs_has_its_share(causes):
    rollouts, truth = planted(causes)
    shares = shares_in(rollouts)
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert share == pytest.approx(truth.get(name, 0.0), abs=WITHIN), (name, shares, truth)


def test_a_share_by_hand():
    """Two ages: 100 tokens of r²/2 = .01 at age 0, 300 of .03 at age 1. K = 1 + 9, staleness 300 (.03 - .01) = 6."""
    sums = np.zeros((1, 8, len(Q)))
    sums[0, 0, [Q["tokens"], Q["k2"]]] = 100, 1
    sums[0, 1, [Q["tokens"], Q["k2"]]] = 300, 9
    shares = {name: float(value[0]) for name, value in shares_of(sums).items()}
    assert shares == {**dict.fromkeys(shares, 0.0), "numerics": pytest.approx(0.4), "staleness": pytest.approx(0.6)}


def test_intervals_cover_and_shares_are_the_same_of_any_split():
    rollouts = clean_run(5, age=3)
    whole, parts = attribute(causes_of(rollouts)), attribute(causes_of(rollouts, parts=5))
    assert [s.share.value for s in parts.shares] == pytest.approx([s.share.value for s in whole.shares], abs=1e-9)
    for share in whole.shares:
        assert share.share.low <= share.share.value <= share.share.high
    staleness = {s.cause: s.share for s in whole.shares}["staleness"]
    assert 0 < staleness.high - staleness.low < 0.2


def test_rollouts_that_are_all_one_update_late_are_stale():
    """No step but the first has rollouts of its own weights: versions that count steps tell."""
    late = [replace(r, weight_versions=None) for r in clean_run(3, age=0)]
    late = [replace(r, weight_versions=(max(0, r.step - 2),) * len(r.response_ids)) for r in late]
    assert [one.first for one in attribute(causes_of(late)).ages] == [0, 1]
    every_third = [replace(r, weight_versions=(r.step // 3,) * len(r.response_ids)) for r in late]
    assert attribute(causes_of(every_third)).ages == ()


def test_ess_and_the_ceiling_of_the_learning_rate():
    """Of sequences with log-ratios N(0, V) of each age the effective sample size is about e^-V."""
    rng = np.random.default_rng(0)
    base = clean_run(3, age=1, prompts=128, mean_length=10)
    out = []
    for rollout in base:
        age = rollout.step - 1 - rollout.weight_versions[0]
        total = rng.normal(-0.5 * (0.1 + 1.1 * (age > 0)), np.sqrt(0.1 + 1.1 * (age > 0)))
        n = len(rollout.response_ids)
        engine = np.full(n, -5.0)
        out.append(replace(rollout, rollout_logprobs=floats(engine), trainer_logprobs=floats(engine + total / n)))
    found = attribute(causes_of(out))
    assert [age.ess.value for age in found.ages] == pytest.approx([np.exp(-0.1), np.exp(-1.2)], abs=0.05)
    assert found.useful_age == 0
    assert found.learning_rate == pytest.approx(np.sqrt((np.log(2) - 0.1) / 1.1), abs=0.05)


def test_what_cannot_be_told_apart_is_said():
    bare = [replace(r, entropy=None, weight_versions=None) for r in clean_run(3)]
    found = attribute(causes_of(bare))
    assert [said.split(" is ")[0].split(" are ")[0] for said in found.missing] == [
        "staleness",
        "a wrong temperature",
        "experts",
        "the sampling support",
    ]
    assert {s.cause: s.share.value for s in found.shares}["numerics"] == 1
    assert attribute(causes_of([replace(r, trainer_logprobs=None) for r in bare])) is None
