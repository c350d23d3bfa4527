"""Level 2: an optimiser step in micro-batches over ranks, against our objective on the whole batch at once."""

import socket
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as processes

from holdfast import DataError, TokenStats, preset
from holdfast.integrations.verl.gather import bytes_per_token, looking_at_the_step, plan_of, whole_step
from holdfast.integrations.verl.settings import step_objective
from holdfast.integrations.verl.step import batch_of, sequence_ids, stats_of, validate
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from integrations.verl import batches
from integrations.verl.steps import OBJECTIVES, in_micro_batches, one_rank, reference

SPLITS = [[[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[5], [0, 3, 4, 1], [2]]]


@pytest.mark.parametrize("split", SPLITS, ids=["whole", "pairs", "ragged"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_split_gives_the_gradient_of_the_whole_step(name, split):
    rows, objective = batches.sequences(), OBJECTIVES[name]
    expected, gradient = reference(objective, rows)
    total, gradients, metrics, _ = in_micro_batches(objective, rows, split)
    assert total == pytest.approx(expected.loss.item(), rel=1e-5, abs=1e-7)
    for number, row in enumerate(rows):
        torch.testing.assert_close(gradients[number], gradient[number, : len(row.mask)], rtol=1e-5, atol=1e-7)
    for ours, theirs in (
        ("masked_tokens", "holdfast/masked_tokens"),
        ("rollout_k2_max",) * 2,
        ("old_k1_mean", "ppo_kl"),
    ):
        found = metrics.get(f"actor/{theirs}", metrics.get(f"actor/holdfast/{theirs}"))
        assert found == pytest.approx(float(expected.metrics[ours]), rel=1e-4, abs=1e-7)
    assert 0 < float(expected.metrics["masked_tokens"]) < 1 or name in ("ppo", "penalties")


def test_the_adapter_cuts_the_response_out_of_the_packed_sequence():
    rows = batches.sequences()
    data = batches.batch(rows)
    batch, stats = batch_of(data), stats_of(batches.outputs(rows), data)
    for number, row in enumerate(rows):
        length = len(row.mask)
        assert torch.equal(stats.logprobs[number, :length], row.logprobs)
        assert torch.equal(stats.entropy[number, :length], row.entropy)
        assert torch.equal(batch.rollout_logprobs[number, :length], row.rollout)
        assert not batch.response_mask[number, length:].any()
    # row 2 has two tool tokens after its first: turn 0, then turn 1 from the token behind them
    assert rows[2].mask.tolist()[:4] == [1, 0, 0, 1]
    assert batch.turn_ids[2, :4].tolist() == [0, 0, 0, 1]


def test_sequence_ids_follow_the_tokens_not_the_place():
    rows = batches.sequences()
    ids = sequence_ids(batches.batch(rows))
    assert len(set(ids.tolist())) == len(rows)
    assert torch.equal(sequence_ids(batches.batch(rows[::-1])), ids.flip(0))


@pytest.mark.parametrize("name", ["ppo", "trm+sspo+kl_cov", "accepted"])
def test_two_ranks_are_one(name, tmp_path):
    rows = batches.sequences()
    expected, gradient = reference(OBJECTIVES[name], rows)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(one_rank, (port, name, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    # verl averages losses, gradients and metrics over the ranks
    assert sum(part[0] for part in found) / 2 == pytest.approx(expected.loss.item(), rel=1e-5, abs=1e-7)
    for number, row in enumerate(rows):
        mine = found[number // 3][1][number % 3] / 2
        torch.testing.assert_close(mine, gradient[number, : len(row.mask)], rtol=1e-5, atol=1e-7)
    masked = sum(part[2]["actor/holdfast/masked_tokens"] for part in found) / 2
    assert masked == pytest.approx(float(expected.metrics["masked_tokens"]), rel=1e-5)


def test_verl_averages_over_ranks_what_ours_add_up_over_them():
    rows = batches.sequences()
    total, gradients, metrics, _ = in_micro_batches(OBJECTIVES["ppo"], rows, SPLITS[1])
    twice, doubled, scaled, _ = in_micro_batches(OBJECTIVES["ppo"], rows, SPLITS[1], ranks=2)
    assert twice == pytest.approx(2 * total)
    assert all(torch.allclose(doubled[number], 2 * gradients[number]) for number in gradients)
    for name, value in metrics.items():
        assert scaled[name] == pytest.approx(value if name.endswith("_max") else 2 * value), name


def test_verls_penalties_become_parts_of_the_objective():
    settings = {"loss_mode": "holdfast_ppo"}
    actor = batches.actor(settings, entropy_coeff=0.01, use_kl_loss=True, kl_loss_coef=0.02, kl_loss_type="mse")
    assert step_objective(actor).penalties == (EntropyBonus(0.01), Kl(0.02, "k2", "ref"))
    assert step_objective(batches.actor(settings)).penalties == ()
    with pytest.raises(ValueError, match=r"kl_loss_type = abs: level 2 knows kl, k1, mse"):
        step_objective(batches.actor(settings, use_kl_loss=True, kl_loss_type="abs"))


def test_a_bad_logprob_of_a_sampled_token_names_the_sequence():
    rows = batches.sequences()
    rows[3].rollout[0] = float("nan")
    batch = batch_of(batches.batch(rows))
    with pytest.raises(DataError, match=r"step 7, rank 1: Batch.rollout_logprobs is not finite.*sequence 3, token 0"):
        validate(batch, preset("trm"), "step 7, rank 1")
    with pytest.raises(DataError, match=r"step 7, rank 1: this objective needs Batch.rollout_logprobs, which is None"):
        validate(replace(batch, rollout_logprobs=None), preset("trm"), "step 7, rank 1")


def test_a_missing_rollout_logprob_on_a_tool_token_changes_nothing():
    rows = batches.sequences()
    before = in_micro_batches(OBJECTIVES["trm+sspo+kl_cov"], rows, SPLITS[1])
    for row in rows:
        row.rollout = row.rollout.masked_fill(row.mask == 0, float("nan"))
    after = in_micro_batches(OBJECTIVES["trm+sspo+kl_cov"], rows, SPLITS[1])
    assert before[0] == after[0]
    assert all(torch.equal(before[1][number], after[1][number]) for number in before[1])


def test_a_rejected_step_has_zero_gradient():
    objective = preset("trm_max+ppo", delta=1e-9, denominator="rollout")
    total, gradients, metrics, _ = in_micro_batches(objective, batches.sequences(), SPLITS[1])
    assert total == 0 and not any(gradient.any() for gradient in gradients.values())
    assert metrics["actor/holdfast/masked_tokens"] == pytest.approx(1)


def test_only_what_a_statistic_reads_is_gathered():
    objective = OBJECTIVES["trm+sspo+kl_cov"]
    looking, places = looking_at_the_step(objective)
    assert [part.kind() for part in looking.parts] == ["kl_cov"] and places == [len(objective.parts) - 1]
    assert looking_at_the_step(OBJECTIVES["accepted"])[0] == OBJECTIVES["accepted"]
    rows = batches.sequences()
    data = batches.batch(rows)
    batch, stats = whole_step(looking, batch_of(data), stats_of(batches.outputs(rows), data), None)
    assert batch.ref_logprobs is None and batch.turn_ids is None and stats.entropy is None
    assert (batch.rollout_logprobs is None) == (looking.denominator == "old")
    assert torch.equal(batch.response_mask, batch_of(data).response_mask)
    # advantages 4, mask 1, old and current 4 each, the rollout's 4 where the ratio is to it
    assert bytes_per_token(objective) == 52 + 13 + 4 * (objective.denominator == "rollout")


def test_the_stand_in_of_the_first_update_is_the_old_policy():
    rows = [replace_old(row) for row in batches.sequences()]
    data = batches.batch(rows)
    objective = OBJECTIVES["trm+sspo+kl_cov"]
    batch = batch_of(data)
    stood_in = plan_of(objective, batch, TokenStats(logprobs=batch.old_logprobs), 0, None)
    measured = plan_of(objective, batch, replace(stats_of(batches.outputs(rows), data), entropy=None), 0, None)
    assert torch.equal(stood_in.prepared[-1], measured.prepared[-1])
    assert measured.prepared[-1].any()


def replace_old(row):
    copy = type(row)(**vars(row))
    copy.old = row.logprobs.clone()
    return copy
