"""Rejected sequences out of the baseline: the queue of verl is a dictionary here, its estimators are verl's own."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from holdfast import Batch, DataError, TokenStats, preset
from holdfast.integrations.verl import baseline
from integrations.verl import batches

OBJECTIVE = preset("trm_max+ppo", delta=0.1, denominator="rollout")
KEYS = [f"{uid}_{number}_0" for uid in "ab" for number in range(4)]


def algorithm(estimator="grpo", **settings):
    return OmegaConf.create({"adv_estimator": estimator, "use_kl_in_reward": False, **settings})


@pytest.fixture
def queue(monkeypatch):
    rows = batches.sequences(8)
    for row, reward in zip(rows, [1, 0, 0, 1, 1, 1, 0, 0], strict=True):
        row.advantage = torch.tensor(float(reward))
    data = batches.batch(rows)
    table = {name: data[name] for name in ("response_mask", "old_log_probs", "rollout_log_probs", "rm_scores")}
    table |= {"uid": ["a"] * 4 + ["b"] * 4, "returns": "a critic's"}

    def get(keys, partition_id, select_fields):
        return {name: table[name] for name in select_fields}

    def put(keys, partition_id, fields):
        table.update({name: fields[name] for name in fields.keys()})  # noqa: SIM118 (a TensorDict)

    monkeypatch.setattr(baseline, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=put))
    return rows, table


def reject(rows, places):
    """Make the mask reject exactly these sequences."""
    for place, row in enumerate(rows):
        row.rollout = row.old - (2.0 if place in places else 0.0)


def replaced(rows, table, estimator="grpo", **settings):
    table.update({name: batches.batch(rows)[name] for name in ("old_log_probs", "rollout_log_probs")})
    metrics = baseline.advantages_of_accepted(OBJECTIVE, KEYS, "train", algorithm(estimator, **settings), "step 3")
    found = [float(a[row.mask.bool()][0]) for a, row in zip(table["advantages"].unbind(), rows, strict=True)]
    for a, row, value in zip(table["advantages"].unbind(), rows, found, strict=True):
        assert torch.equal(a, value * row.mask)
    return found, metrics


def test_rejected_sequences_leave_their_groups_baseline(queue):
    rows, table = queue
    reject(rows, {1, 4, 5})
    found, metrics = replaced(rows, table)
    # Group a keeps rewards 1, 0, 1: mean 2/3, std √(1/3) = .57735; (1/3)/.57735 = .57735 and −(2/3)/.57735 = −1.1547.
    # Group b keeps 0, 0: no difference, advantage 0.
    assert found == pytest.approx([0.57735, 0, -1.1547, 0.57735, 0, 0, 0, 0], rel=1e-4)
    assert metrics == {"actor/holdfast/out_of_baseline": 3 / 8, "actor/holdfast/without_baseline": 0}
    assert table["returns"] == "a critic's" and table["uid"] == ["a"] * 4 + ["b"] * 4


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "opo"])
def test_the_only_accepted_sequence_of_a_group_has_nothing_to_be_compared_with(estimator, queue):
    rows, table = queue
    reject(rows, {1, 2, 3, 5, 6, 7})
    found, metrics = replaced(rows, table, estimator)
    assert found == [0.0] * 8
    assert metrics["actor/holdfast/without_baseline"] == 2 / 8
    reject(rows, set(range(8)))
    assert replaced(rows, table, estimator)[0] == [0.0] * 8


def test_each_estimator_is_verls_over_the_accepted(queue):
    rows, table = queue
    reject(rows, {1, 4})
    # rloo: R − mean of the others: 1 − 1/2, 0 − 1, 1 − 1/2; b keeps 1, 0, 0: 1 − 0, 0 − 1/2, 0 − 1/2.
    assert replaced(rows, table, "rloo")[0] == pytest.approx([0.5, 0, -1, 0.5, 0, 1, -0.5, -0.5])
    plain = replaced(rows, table, norm_adv_by_std_in_grpo=False)[0]
    assert plain == pytest.approx([1 / 3, 0, -2 / 3, 1 / 3, 0, 2 / 3, -1 / 3, -1 / 3])
    # opo weighs the mean reward by length: tokens of rows 0, 2, 3 and 5, 6, 7.
    length = [int(row.mask.sum()) for row in rows]
    a = (length[0] + length[3]) / (length[0] + length[2] + length[3])
    b = length[5] / (length[5] + length[6] + length[7])
    assert replaced(rows, table, "opo")[0] == pytest.approx([1 - a, 0, -a, 1 - a, 0, 1 - b, -b, -b])


def test_verls_own_estimate_where_nothing_is_rejected(queue):
    rows, table = queue
    reject(rows, set())
    mask = table["response_mask"].to_padded_tensor(0)
    rewards = table["rm_scores"].to_padded_tensor(0)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, np.array(table["uid"], dtype=object))
    expected = [float(a[0]) for a in theirs]
    assert replaced(rows, table)[0] == pytest.approx(expected)


def test_the_penalty_in_the_reward_counts(queue):
    rows, table = queue
    reject(rows, {1})
    table["token_level_rewards"] = batches.nested([torch.eye(len(row.mask))[-1] * (1 + row.advantage) for row in rows])
    plain = replaced(rows, table)[0]
    table["rm_scores"] = "not read"
    metrics = baseline.advantages_of_accepted(OBJECTIVE, KEYS, "train", algorithm(use_kl_in_reward=True), "step 3")
    found = [float(a[row.mask.bool()][0]) for a, row in zip(table["advantages"].unbind(), rows, strict=True)]
    assert found == pytest.approx(plain) and metrics["actor/holdfast/out_of_baseline"] == 1 / 8


def test_padding_rows_are_no_sequences(queue):
    rows, table = queue
    reject(rows, {1})
    for row in rows[4:]:
        row.mask[:] = 0
    table["response_mask"] = batches.batch(rows)["response_mask"]
    table.update({name: batches.batch(rows)[name] for name in ("old_log_probs", "rollout_log_probs")})
    metrics = baseline.advantages_of_accepted(OBJECTIVE, KEYS, "train", algorithm(), "step 3")
    assert metrics["actor/holdfast/out_of_baseline"] == 1 / 4


def test_a_session_of_several_outputs_is_refused():
    keys = ["a_0_0", "a_1_0", "a_1_1", "b_0_0"]
    with pytest.raises(DataError, match=re.escape("step 3: session a_1 has 2 outputs") + ".*Set baseline=all"):
        baseline.require_single_outputs(keys, "step 3")
    baseline.require_single_outputs(["a_0_0", "a_1_0", "pad1_0_0", "pad1_1_0"], "step 3")


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
