"""Thresholds for lengths and staleness that were not measured: what is drawn out, stretched and proposed."""

import itertools
import math

import pytest
import torch

from holdfast.errors import DataError
from holdfast.preflight.thresholds import drawn_out, propose, stretched, tensors
from holdfast.types import Rollout


def rollout(engine, trainer, kl=None, group=0):
    return Rollout((1,), tuple(range(len(engine))), tuple(engine), tuple(trainer), kl_exact=kl, group_id=group)


def noisy(rows=64, tokens=20, size=0.02, seed=0, kl=True):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in range(rows):
        ratio = torch.randn(tokens, generator=generator).double() * size
        engine = -torch.rand(tokens, generator=generator).double() - 0.5
        exact = tuple((ratio**2 / 2).tolist()) if kl else None
        found.append(rollout(engine.tolist(), (engine + ratio).tolist(), exact, row))
    return found


def test_rollouts_become_tensors_with_their_padding():
    batch, stats = tensors([rollout([-1.0, -2.0], [-1.5, -2.0], (0.1, 0.0)), rollout([-3.0], [-3.0], (0.2,))])
    assert batch.response_mask.tolist() == [[True, True], [True, False]]
    assert stats.logprobs.tolist() == [[-1.5, -2.0], [-3.0, 0.0]]
    assert stats.kl_rollout.flatten().tolist() == pytest.approx([0.1, 0.0, 0.2, 0.0])
    assert tensors([rollout([-1.0], [-1.0])])[1].kl_rollout is None
    with pytest.raises(DataError, match="lacks"):
        tensors([Rollout((1,), (2,), (-1.0,))])


def test_what_is_drawn_out_is_made_of_whole_responses_in_order():
    batch, stats = tensors([rollout([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]), rollout([-7.0], [-7.0])])
    long, scored = drawn_out(batch, stats, 40, seed=0)
    assert long.response_mask.shape[1] == 40 and bool(long.response_mask.all())
    flat = long.rollout_logprobs.flatten().tolist()
    pairs = set(itertools.pairwise(flat))
    assert pairs <= {(-1.0, -2.0), (-2.0, -3.0), (-3.0, -1.0), (-3.0, -7.0), (-7.0, -1.0), (-7.0, -7.0)}
    assert torch.equal(scored.logprobs, long.rollout_logprobs)
    # each response as often as the other: three of four tokens are the first one's
    assert sum(value == -7.0 for value in flat) / len(flat) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("positions", "rows"), [(40, 32), (40 * 100, 100), (40 * 1000, 256)])
def test_as_many_are_drawn_out_as_there_is_room_for(monkeypatch, positions, rows):
    monkeypatch.setattr("holdfast.preflight.thresholds.POSITIONS", positions)
    batch, stats = tensors([rollout([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])])
    assert drawn_out(batch, stats, 40, seed=0)[0].response_mask.shape == (rows, 40)


def test_a_stretched_log_ratio_is_as_many_times_as_large_and_its_kl_squared_so():
    batch, stats = tensors([rollout([-1.0, -2.0], [-1.1, -1.8], (0.005, 0.02))])
    _, twice = stretched(batch, stats, 2.0)
    assert twice.logprobs.tolist()[0] == pytest.approx([-1.2, -1.6])
    assert twice.kl_rollout.tolist()[0] == pytest.approx([0.02, 0.08])


def test_staleness_adds_its_square_to_the_kl():
    found = propose(noisy(), length=100, staleness=3, update_kl=1e-3, framework="verl", seed=0)
    assert found.kl == pytest.approx(0.02**2 / 2, rel=0.1)
    assert found.planned_kl == pytest.approx(found.kl + 9e-3)
    assert found.factor == pytest.approx(math.sqrt(found.planned_kl / found.kl))
    assert "9" in found.assumed[1] and "0.009" in found.assumed[1]


@pytest.mark.parametrize("kl", [True, False])
def test_an_exact_engine_leaves_room_for_the_update_on_a_batch(kl):
    """Its noise alone, a log-ratio of 1e-5, would give a threshold of 1e-9, which the first update is beyond."""
    given = noisy(size=1e-5, kl=kl)
    found = propose(given, length=20, staleness=0, update_kl=1e-4, framework="TRL", seed=0)
    assert found.planned_kl == pytest.approx(found.kl + 1e-4)
    moved = tensors(given)
    after = stretched(*moved, 1e3)  # k2 of 5e-5 on average
    k2 = (after[1].logprobs - after[0].rollout_logprobs).square().amax(-1) / 2
    assert (k2 <= found.advice.recommendations["trm_max"].point.threshold).double().mean() >= 0.7
    assert found.advice.recommendations["trm_avg"].point.threshold > 1e-4


def test_longer_responses_are_kept_as_rarely_as_their_tokens_say():
    # one token in a hundred has k2 = .125: of responses of T tokens (1 - .01)^T keep below .05
    ratios = [[0.5 if (row * 20 + place) % 100 == 0 else 0.01 for place in range(20)] for row in range(100)]
    given = [rollout([-1.0] * 20, [-1.0 + r for r in row], group=i) for i, row in enumerate(ratios)]
    for length in (20, 200):
        found = propose(given, length=length, staleness=0, update_kl=1e-4, framework="TRL", seed=0).advice
        usual = next(point for point in found.sweeps["trm_max"] if point.threshold == 0.05)
        assert usual.acceptance == pytest.approx(0.8 ** (length / 20), abs=0.06)
    assert found.recommendations["trm_max"].point.threshold >= 0.125


def test_every_mask_comes_with_the_lines_of_the_framework():
    found = propose(noisy(size=0.3), length=64, staleness=0, update_kl=1e-4, framework="Holdfast", seed=0)
    delta = found.advice.recommendations["trm_max"].point.threshold
    assert f"objective.delta = {delta:.4g}" in found.lines["trm_max"]
    average = found.advice.recommendations["trm_avg"].point.threshold
    assert f"objective.delta_avg = {average:.4g}" in found.lines["trm_avg"]
    verl = propose(noisy(size=0.3), length=64, staleness=0, update_kl=1e-4, framework="verl", seed=0)
    assert f"rollout_rs_threshold={average:.4g}" in verl.lines["ln_trm"]
    assert len(found.assumed) == 2 and "in step" in found.assumed[1]
