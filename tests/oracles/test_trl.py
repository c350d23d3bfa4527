"""TRL 1.16.0 as an oracle: values and gradients of its own loss code, in float64."""

from dataclasses import replace

import pytest
import torch

from oracles import trl_rows
from oracles.draws import assert_same, draw, per_sequence, run_ours
from oracles.rows import BATCHES
from oracles.trl_peer import run_trl, score


def named(rows):
    return {"argvalues": rows, "ids": [row.name for row in rows]}


def both(row, batch, stats):
    """(ours, theirs) for one row."""
    theirs = run_trl(dict(row.settings), batch, stats, gmpo=row.options.get("gmpo", False))
    return run_ours(row.objective, batch, stats), theirs


@pytest.mark.parametrize("row", **named(trl_rows.ROWS))
def test_loss_and_gradient_are_the_same(row):
    one_advantage = row.options.get("gmpo", False) or row.settings.get("loss_type") == "vespo"
    for seed in range(BATCHES):
        batch, stats = draw(seed, min_tokens=row.min_tokens, widest=row.widest)
        batch = per_sequence(batch) if one_advantage else batch
        if not row.options.get("rollout", True):
            batch = replace(batch, rollout_logprobs=None)
        size = float(batch.advantages.abs().max())
        assert_same(*both(row, batch, stats), size=size)
        if not row.settings.get("use_vllm"):
            assert_same(*both(row, replace(batch, old_logprobs=None), stats), size=size)


@pytest.mark.parametrize("row", **named(trl_rows.ADVANTAGES))
@pytest.mark.parametrize("group", [2, 3, 5])
def test_advantages_are_the_same(row, group):
    for seed in range(BATCHES):
        g = torch.Generator().manual_seed(seed)
        batch, _ = draw(seed, sequences=3 * group)
        drawn = torch.randn(3 * group, generator=g), torch.randint(0, 2, (3 * group,), generator=g)
        rewards = drawn[seed % 2].double()
        theirs = score(dict(row.settings) | {"num_generations": group}, batch, rewards)["advantages"]
        ours = row.objective.advantage.estimate(rewards, torch.arange(3 * group) // group, batch.response_mask)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
