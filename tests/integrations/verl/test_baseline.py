"""Rejected sequences out of the baseline: the queue of verl is a dictionary here, its estimator is verl's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from holdfast import Batch, TokenStats, preset
from holdfast.integrations.verl import baseline
from integrations.verl import batches

OBJECTIVE = preset("trm_max+ppo", delta=0.1, denominator="rollout")


@pytest.fixture
def queue(monkeypatch):
    rows = batches.sequences(8)
    for row, reward in zip(rows, [1, 0, 0, 1, 1, 1, 0, 0], strict=True):
        row.advantage = torch.tensor(float(reward))
    data = batches.batch(rows)
    table = {name: data[name] for name in ("response_mask", "old_log_probs", "rollout_log_probs")}
    table |= {"uid": ["a"] * 4 + ["b"] * 4}

    def get(keys, partition_id, select_fields):
        return {name: table[name] for name in select_fields}

    def put(keys, partition_id, fields):
        table.update({name: list(fields[name]) if name == "uid" else fields[name] for name in fields.keys()})  # noqa: SIM118

    monkeypatch.setattr(baseline, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=put))
    return rows, table


def estimate(rows, table):
    """verl's GRPO estimator on what the queue holds, written back as its trainer does."""
    mask = table["response_mask"].to_padded_tensor(0)
    rewards = batches.batch(rows)["rm_scores"].to_padded_tensor(0)
    advantages, _ = compute_grpo_outcome_advantage(rewards, mask, np.array(table["uid"], dtype=object))
    ragged = batches.nested([a[: len(row.mask)] for a, row in zip(advantages, rows, strict=True)])
    table.update(advantages=ragged, returns=ragged)


def test_rejected_sequences_leave_their_groups_baseline(queue):
    rows, table = queue
    worst = torch.stack([((r.old - r.rollout)[r.mask.bool()].square() / 2).max() for r in rows])
    accepted = worst <= 0.1
    assert 0 < accepted[:4].sum() < 4 or 0 < accepted[4:].sum() < 4
    metrics = {}
    keys = [f"{uid}_{n}_0" for n, uid in enumerate(table["uid"])]
    baseline.advantages_of_accepted(OBJECTIVE, keys, "train", lambda: estimate(rows, table), metrics)
    assert metrics["actor/holdfast/out_of_baseline"] == pytest.approx(1 - accepted.float().mean().item())
    assert table["uid"] == ["a"] * 4 + ["b"] * 4
    rewards = torch.stack([row.advantage for row in rows])
    for group in (slice(0, 4), slice(4, 8)):
        kept = rewards[group][accepted[group]]
        for place, row in enumerate(rows[group], start=group.start):
            found = table["advantages"][place]
            if not accepted[place]:
                assert not found.any()
            elif len(kept) > 1:
                # GRPO: (R − mean)/(std + 1e-6) over the accepted of the group
                expected = (rewards[place] - kept.mean()) / (kept.std() + 1e-6)
                torch.testing.assert_close(found[row.mask.bool()], expected.expand(int(row.mask.sum())))


def test_the_verdict_is_that_of_the_masks_alone():
    rows = batches.sequences(8)
    data = batches.batch(rows)
    old = data["old_log_probs"].to_padded_tensor(0)
    batch = Batch(
        advantages=torch.zeros(8),
        response_mask=data["response_mask"].to_padded_tensor(0).bool(),
        old_logprobs=old,
        rollout_logprobs=data["rollout_log_probs"].to_padded_tensor(0),
    )
    stats = TokenStats(logprobs=old)
    rejected = baseline.rejected_rows(OBJECTIVE, batch, stats)
    with_penalties = preset("trm_max+ppo+entropy_bonus+kl_cov", delta=0.1, denominator="rollout")
    assert torch.equal(baseline.rejected_rows(with_penalties, batch, stats), rejected)
    assert rejected.any() and not rejected.all()
    # OPSM looks at the sign of the advantage, which is not known yet
    assert not baseline.rejected_rows(preset("opsm", max_mean_k1=1e-6), batch, stats).any()
