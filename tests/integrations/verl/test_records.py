"""What the worker writes of a step, read back from parquet."""

from dataclasses import replace

import pytest
import torch

from holdfast import preset
from holdfast.integrations.verl.records import rollouts_of
from holdfast.integrations.verl.step import ROW
from holdfast.rollout.store import read_rollouts, write_rollouts
from integrations.verl import batches
from integrations.verl.steps import in_micro_batches


def test_every_sequence_is_recorded_as_it_was_trained_on(tmp_path):
    rows = batches.sequences()
    rows[4].mask[:] = 0  # verl's padding rows have no response token
    objective = preset("trm_max+sspo", delta=0.1)
    _, _, _, loss = in_micro_batches(objective, rows, [[5], [0, 3, 4, 1], [2]])
    data = batches.batch(rows)
    data["uid"] = ["a", "a", "a", "b", "b", "b"]
    assert write_rollouts(tmp_path / "step.parquet", rollouts_of(data, loss.seen, step=3)) == 5
    found = list(read_rollouts(tmp_path / "step.parquet"))
    for number, rollout in zip([5, 0, 3, 1, 2], found, strict=True):
        row, sampled = rows[number], rows[number].mask.bool()
        assert rollout.prompt_ids == tuple(row.prompt.tolist()) and rollout.response_ids == tuple(row.response.tolist())
        assert rollout.trainer_logprobs == pytest.approx(row.logprobs.tolist())
        assert rollout.rollout_logprobs == pytest.approx(row.rollout.tolist())
        assert rollout.response_mask == tuple(sampled.tolist())
        assert rollout.advantages == pytest.approx((row.advantage * row.mask).tolist())
        assert rollout.reward == pytest.approx(row.advantage.item())
        worst = ((row.logprobs - row.rollout)[sampled].square() / 2).max()
        assert any(rollout.trust_mask) == bool(worst <= 0.1)
        count = int(sampled.sum())
        assert rollout.mask_reason == (None if worst <= 0.1 else f"trm_max ({count} tokens)")
        assert rollout.step == 3 and rollout.extra == {"source": "verl"}
    assert len({rollout.group_id for rollout in found}) == 2
    assert {any(rollout.trust_mask) for rollout in found} == {True, False}
    assert torch.equal(data[ROW], torch.arange(6))


def test_the_bounds_of_the_third_level_are_recorded():
    rows = batches.sequences()
    _, _, _, loss = in_micro_batches(preset("ppo"), rows, [[0, 1, 2, 3, 4, 5]])
    ((order, batch, stats, out),) = loss.seen
    bounds = {"kl_rollout_lower": 0.125, "tv_rollout_lower": 0.25, "tv_rollout_upper": 0.5}
    stats = replace(stats, **{name: torch.full_like(stats.logprobs, value) for name, value in bounds.items()})
    found = next(rollouts_of(batches.batch(rows), [(order, batch, stats, out)], step=1))
    count = len(found.response_ids)
    assert (found.kl_lower, found.tv_lower, found.tv_upper) == ((0.125,) * count, (0.25,) * count, (0.5,) * count)
