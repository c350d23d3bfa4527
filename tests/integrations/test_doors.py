"""Losses that other trainers call: gradients equal direct use over every preset that a hook claims."""

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import holdfast
from cases import random_batch, with_gradient
from holdfast.cli import dispatch
from holdfast.errors import ConfigError, DataError
from holdfast.integrations import nemo_rl, prime_rl, roll, skyrl, slime, tinker
from holdfast.integrations.records import Records, Sequences, group_of
from holdfast.rollout.store import read_rollouts

LENGTHS = [12, 5, 9, 7]


def claimed(ask):
    """Presets that a hook takes, and the refusals of the others."""
    found, refused = [], {}
    for name in holdfast.list_presets():
        try:
            ask(name)
            found.append(name)
        except ConfigError as error:
            refused[name] = str(error)
    return found, refused


def case():
    batch, stats = random_batch(len(LENGTHS), max(LENGTHS), seed=3)
    inside = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    advantages = torch.where(batch.response_mask, batch.advantages[:, None], 0.0)
    sampled = batch.rollout_logprobs
    turns = holdfast.integrations.turns.turn_ids(batch.response_mask & inside)
    batch = replace(
        batch,
        advantages=torch.where(inside, advantages, 0),
        response_mask=batch.response_mask & inside,
        old_logprobs=sampled,
        turn_ids=turns,
        sequence_ids=torch.arange(len(LENGTHS)),
    )
    return batch, holdfast.TokenStats(logprobs=stats.logprobs), inside


def gradient(objective, batch, stats, plan=None):
    live = with_gradient(stats)
    objective(batch, live, plan=plan).loss.backward()
    return live.logprobs.grad


TINKER, NOT_TINKER = claimed(tinker.tinker_loss)
PRIME_RL, NOT_PRIME_RL = claimed(prime_rl.exact)
NEMO_RL, NOT_NEMO_RL = claimed(nemo_rl.HoldfastLoss)
ROLL, NOT_ROLL = claimed(roll.chosen)
PARTS = ([0, 2], [1], [3])
"""Micro-batches of unequal size."""


@pytest.mark.parametrize("name", TINKER)
def test_tinker(name):
    batch, stats, _ = case()
    rows = [stats.logprobs[i, :n].clone().requires_grad_() for i, n in enumerate(LENGTHS)]
    data = [
        SimpleNamespace(
            loss_fn_inputs={
                "advantages": batch.advantages[i, :n],
                "logprobs": batch.rollout_logprobs[i, :n],
                "mask": batch.response_mask[i, :n].float(),
                "ref_logprobs": batch.ref_logprobs[i, :n],
            }
        )
        for i, n in enumerate(LENGTHS)
    ]
    loss, metrics = tinker.tinker_loss(name)(data, rows)
    loss.backward()
    expected = gradient(holdfast.preset(name), batch, stats)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(rows[i].grad, expected[i, :n], rtol=0, atol=1e-12)
    assert all(isinstance(value, float) for value in metrics.values())


def test_tinker_writes_what_it_trained_on(tmp_path):
    batch, stats, _ = case()
    rows = [stats.logprobs[i, :n].clone().requires_grad_() for i, n in enumerate(LENGTHS)]
    data = [
        SimpleNamespace(
            loss_fn_inputs={
                "advantages": batch.advantages[i, :n],
                "logprobs": batch.rollout_logprobs[i, :n],
                "mask": (torch.arange(n) >= 2).float(),
                "target_tokens": torch.arange(n) + 10 * i,
            }
        )
        for i, n in enumerate(LENGTHS)
    ]
    loss = tinker.tinker_loss("trm_max+dapo", detector="k3", records=tmp_path / "records")
    for _ in range(2):
        loss(data, rows)
    files = sorted((tmp_path / "records").iterdir())
    assert [file.name for file in files] == ["call_000001.parquet", "call_000002.parquet"]
    for i, (found, n) in enumerate(zip(read_rollouts(files[1]), LENGTHS, strict=True)):
        assert found.step == 2 and found.prompt_ids == (10 * i, 10 * i + 1)
        assert found.response_ids == tuple(range(10 * i + 2, 10 * i + n)) and all(found.response_mask)
        assert found.trainer_logprobs == pytest.approx(stats.logprobs[i, 2:n].tolist(), abs=1e-6)
        assert found.rollout_logprobs == pytest.approx(batch.rollout_logprobs[i, 2:n].tolist(), abs=1e-6)
    with pytest.raises(DataError, match="target_tokens"):
        del data[1].loss_fn_inputs["target_tokens"]
        loss(data, rows)


@pytest.mark.parametrize("name", PRIME_RL)
def test_prime_rl(name):
    batch, stats, _ = case()
    objective = holdfast.preset(name)
    batch = replace(
        batch,
        **{n: getattr(batch, n).float() for n in ("advantages", "old_logprobs", "rollout_logprobs", "ref_logprobs")},
    )
    stats = holdfast.TokenStats(logprobs=stats.logprobs.float())
    expected = gradient(objective, batch, stats)
    tokens, sequences = batch.response_mask.sum(), len(LENGTHS)
    factor = {"token_mean": tokens}.get(objective.normalize.reduction, torch.tensor(sequences))
    for i, n in enumerate(LENGTHS):
        row = stats.logprobs[i, :n].clone().requires_grad_()
        inputs = SimpleNamespace(
            trainer_logprobs=row,
            inference_logprobs=batch.rollout_logprobs[i, :n],
            ref_logprobs=batch.ref_logprobs[i, :n],
            advantages=batch.advantages[i, :n],
            loss_mask=batch.response_mask[i, :n],
            loss_weights=None,
        )
        out = prime_rl.loss(inputs, objective=name)
        out.loss.backward()
        torch.testing.assert_close(row.grad, expected[i, :n] * factor, rtol=1e-4, atol=1e-6)
        assert all(torch.is_tensor(value) for value in out.metrics.values())


@pytest.mark.parametrize("name", skyrl.possible())
def test_skyrl(name):
    batch, stats, _ = case()
    objective = holdfast.preset(name)
    expected = gradient(objective, batch, stats)
    n = objective.normalize.weights(batch.response_mask, holdfast.Counts.of(batch.response_mask), torch.float64)
    own = skyrl.REDUCTIONS[objective.normalize.reduction]
    config = SimpleNamespace(policy_loss_type=f"holdfast_{name}", loss_reduction=own)
    total = torch.zeros_like(expected)
    for rows in (slice(0, 1), slice(1, 4)):  # SkyRL scales the step's advantages, then takes micro-batches
        live = stats.logprobs[rows].clone().requires_grad_()
        scaled = (batch.advantages * n)[rows]
        old, rollout, mask = (x[rows] for x in (batch.old_logprobs, batch.rollout_logprobs, batch.response_mask))
        loss, _ = skyrl.policy_loss(live, old, scaled, config, mask.double(), rollout)
        loss.backward()
        total[rows] = live.grad
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-9)


def with_old(batch):
    """The same with a trainer's old policy that is not the engine's."""
    return replace(
        batch,
        old_logprobs=batch.rollout_logprobs
        + 0.1 * torch.sin(torch.arange(batch.advantages.numel()).view_as(batch.advantages)),
    )


@pytest.mark.parametrize("name", NEMO_RL)
def test_nemo_rl_adds_up_over_any_micro_batches(name):
    batch, stats, _ = case()
    batch, loss = with_old(batch), nemo_rl.HoldfastLoss(name)
    expected = gradient(holdfast.preset(name), batch, stats)
    live = stats.logprobs.clone().requires_grad_()
    first = torch.full((len(LENGTHS), 1), 7.0)  # belongs to no prediction

    def shifted(values):
        return torch.cat([first.to(values.dtype), values], 1)

    whole, total, value = batch.response_mask, 0.0, 0.0
    for rows in PARTS:
        data = {
            "token_mask": shifted(whole)[rows],
            "sample_mask": torch.ones(len(rows)),
            "advantages": shifted(batch.advantages)[rows],
            "prev_logprobs": shifted(batch.old_logprobs)[rows],
            "generation_logprobs": shifted(batch.rollout_logprobs)[rows],
            "reference_policy_logprobs": shifted(batch.ref_logprobs)[rows],
        }
        part, metrics = loss(live[rows], data, torch.tensor(len(LENGTHS)), whole.sum())
        part.backward()
        total, value = total + metrics["loss"], value + float(part.detach())
        assert metrics["num_valid_samples"] == len(rows)
    torch.testing.assert_close(live.grad, expected, rtol=0, atol=1e-12)
    assert total == pytest.approx(value) == pytest.approx(float(loss.objective(batch, stats).loss))


def test_nemo_rl_leaves_out_samples_and_names_what_a_step_lacks():
    batch, stats, _ = case()
    first = torch.zeros(len(LENGTHS), 1)
    data = {
        "token_mask": torch.cat([first.bool(), batch.response_mask], 1),
        "sample_mask": torch.tensor([1.0, 0.0, 1.0, 1.0]),
        "advantages": torch.cat([first, batch.advantages], 1),
        "prev_logprobs": torch.cat([first, batch.old_logprobs], 1),
    }
    live = stats.logprobs.clone().requires_grad_()
    nemo_rl.HoldfastLoss("ppo")(live, data, torch.tensor(3), batch.response_mask[[0, 2, 3]].sum())[0].backward()
    rows = [0, 2, 3]
    expected = gradient(holdfast.preset("ppo"), batch.select(torch.tensor(rows)), stats.select(torch.tensor(rows)))
    torch.testing.assert_close(live.grad[rows], expected, rtol=0, atol=1e-12)
    assert not live.grad[1].any()
    with pytest.raises(DataError, match="generation_logprobs"):
        nemo_rl.HoldfastLoss("trm+ppo")(live, data, torch.tensor(3), torch.tensor(9))


class Strategy:
    """ROLL's: log-probabilities from what the model gave."""

    def op_compute_log_probs(self, logits, input_ids, attention_mask):
        return logits


class RollWorker:
    strategy = Strategy()

    def get_old_log_probs_with_cache(self, data, log_probs):
        return data.batch["old_log_probs"]


def roll_data(batch, rows, final=False, engine=True):
    first = torch.zeros(len(LENGTHS), 1, dtype=torch.bool)
    whole = batch.response_mask
    tensors = {
        "input_ids": torch.zeros(len(rows), 1),
        "response_mask": torch.cat([first, whole], 1)[rows].long(),
        "advantages": batch.advantages[rows],
        "old_log_probs": batch.old_logprobs[rows],
        "ref_log_probs": batch.ref_logprobs[rows],
        "infer_logprobs": batch.rollout_logprobs[rows] if engine else torch.empty(0),
    }
    if final:
        tensors["final_response_mask"] = whole[rows].long()
        tensors["response_mask"] = torch.ones_like(tensors["response_mask"])
    key = "final_response_mask" if final else "response_mask"
    facts = {"batch_num_tokens": {key: int(whole.sum())}, "global_valid_samples": {key: len(LENGTHS)}}
    return SimpleNamespace(batch=tensors, meta_info=facts)


IDS = torch.arange(4 * 13).view(4, 13) % 13 + 100
"""Of every row the same 13 tokens: rows whose responses begin at the same place have the same prompt."""


def expected_rollouts(batch, trainer, rows, left=0):
    """Of these rows: the prompt and the response, by hand; the first `left` tokens are padding."""
    found = {}
    for row in rows:
        places = batch.response_mask[row].nonzero().flatten().tolist()
        first, end = places[0], places[-1] + 1
        found[row] = {
            "prompt_ids": tuple(range(100 + left, 100 + first + 1)),
            "response_ids": tuple(range(100 + first + 1, 100 + end + 1)),
            "response_mask": tuple(batch.response_mask[row, first:end].tolist()),
            "rollout_logprobs": pytest.approx(batch.rollout_logprobs[row, first:end].tolist(), abs=1e-6),
            "trainer_logprobs": pytest.approx(trainer[row, first:end].tolist(), abs=1e-6),
            "advantages": pytest.approx(batch.advantages[row, first:end].tolist(), abs=1e-6),
        }
    return list(found.values())


def written(folder, steps):
    """The records of each step, and the names of their files."""
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"step_{step:06d}_rank_0000_part_001.parquet" for step in steps]
    return [list(read_rollouts(file)) for file in files]


def same(found, wanted, step):
    assert len(found) == len(wanted)
    for rollout, row in zip(found, wanted, strict=True):
        assert {name: getattr(rollout, name) for name in row} == row
        assert rollout.step == step and rollout.group_id == group_of(rollout.prompt_ids)
        assert len(rollout.trust_mask) == len(rollout.response_ids)


def audited(folder, capsys, sequences, steps):
    """The audit reads the folder as it is."""
    assert dispatch(["audit", str(folder), "--json", "--fail-on", "never"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["sequences"] == sequences and facts["steps"] == steps


def test_nemo_rl_writes_what_it_trained_on(tmp_path, capsys):
    """Two steps of three micro-batches each, the second sample left out of the second one; sent as Ray sends it."""
    batch, stats, _ = case()
    batch, first = with_old(batch), torch.zeros(len(LENGTHS), 1)
    loss = pickle.loads(pickle.dumps(nemo_rl.HoldfastLoss("trm_max+dapo", detector="k3", records=tmp_path / "new")))
    for kept in (torch.ones(4), torch.tensor([1.0, 0.0, 1.0, 1.0])):
        counts = batch.response_mask.sum()
        for rows in PARTS:
            data = {"input_ids": IDS[rows], "input_lengths": torch.tensor(LENGTHS)[rows] + 1}
            data |= {"token_mask": torch.cat([first.bool(), batch.response_mask], 1)[rows], "sample_mask": kept[rows]}
            for name, theirs in (("advantages", "advantages"), *nemo_rl.KEYS.items()):
                data[theirs] = torch.cat([first, getattr(batch, name)], 1)[rows]
            loss(stats.logprobs[rows], data, torch.tensor(4), counts)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["step_000001_rank_0000_part_001.parquet"]
    loss._records.flush()
    one, two = written(tmp_path / "new", (1, 2))
    same(one, expected_rollouts(batch, batch.old_logprobs, [0, 2, 1, 3]), 1)
    same(two, expected_rollouts(batch, batch.old_logprobs, [0, 2, 3]), 2)
    audited(tmp_path / "new", capsys, 7, [1, 2])
    del data["input_ids"]
    with pytest.raises(DataError, match="records need input_ids"):
        loss(stats.logprobs[rows], data, torch.tensor(4), counts)


def test_roll_writes_every_third_step_and_a_sequence_once(tmp_path, monkeypatch, capsys):
    """Left-padded prompts; a second pass over the same sequences (ppo_epochs) is not written again."""
    folder = tmp_path / "records"
    for name, value in ((roll.VARIABLE, "trm+grpo"), (roll.FOLDER, str(folder)), (roll.EVERY, "3")):
        monkeypatch.setenv(name, value)
    roll._records.cache_clear()
    batch, stats, _ = case()
    batch = with_old(batch)
    for step in range(1, 7):
        for _ in range(2):
            for rows in PARTS:
                data = roll_data(batch, rows)
                data.batch |= {"input_ids": IDS[rows], "attention_mask": (torch.arange(13) >= 1).expand(len(rows), 13)}
                data.meta_info["global_step"] = step
                data.non_tensor_batch = {"sample_uuid": [f"{step} {row}" for row in rows]}
                roll.policy_loss(RollWorker(), data, stats.logprobs[rows])
    roll._records(str(folder), "3").files.flush()
    for step, found in zip((3, 6), written(folder, (3, 6)), strict=True):
        same(found, expected_rollouts(batch, batch.old_logprobs, [0, 2, 1, 3], left=1), step)
    audited(folder, capsys, 8, [3, 6])
    monkeypatch.setenv(roll.EVERY, "often")
    with pytest.raises(ConfigError, match="HOLDFAST_RECORDS_EVERY=often: give a whole number"):
        roll.policy_loss(RollWorker(), data, stats.logprobs[rows])


def test_records_of_a_long_step_go_into_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.integrations.records.ROWS", 3)
    batch, stats, _ = case()
    files = Records(tmp_path, "here")
    out = holdfast.preset("dapo")(batch, stats)
    sequences = Sequences(IDS, torch.ones_like(IDS).bool(), stats.logprobs)
    for _ in range(2):
        files.add(1, sequences, batch, out)
    assert sorted(f.name[-11:-8] for f in tmp_path.iterdir()) == ["001", "002"]
    with pytest.raises(ConfigError, match="every 0-th step: give a whole number from 1"):
        Records(tmp_path, "here", 0)


@pytest.mark.parametrize("name", ROLL)
def test_roll_adds_up_over_any_micro_batches(name, monkeypatch):
    monkeypatch.setenv(roll.VARIABLE, name)
    batch, stats, _ = case()
    batch = with_old(batch)
    live, total = stats.logprobs.clone().requires_grad_(), 0.0
    for place, rows in enumerate(PARTS):
        part, metrics = roll.policy_loss(RollWorker(), roll_data(batch, rows, final=place == 1), live[rows])
        part.backward()
        total += metrics["actor/total_loss@sum"]
        assert all(key.endswith("@sum") for key in metrics)
    objective = holdfast.preset(name)
    torch.testing.assert_close(live.grad, gradient(objective, batch, stats), rtol=0, atol=1e-12)
    assert total == pytest.approx(float(objective(batch, stats).loss))


def test_roll_names_the_setting_without_which_it_has_no_engine(monkeypatch):
    batch, stats, _ = case()
    monkeypatch.setenv(roll.VARIABLE, "trm+grpo")
    with pytest.raises(DataError, match=r"actor_infer\.generating_args\.logprobs"):
        roll.policy_loss(RollWorker(), roll_data(batch, [0], engine=False), stats.logprobs[[0]])
    with pytest.raises(AttributeError, match="no attribute 'Worker'"):
        _ = roll.Worker


def test_most_presets_pass_and_the_others_are_refused_with_the_reason():
    assert len(TINKER) > 30 and all("needs" in reason for reason in NOT_TINKER.values())
    assert len(PRIME_RL) > 20 and {"m2po", "kl_cov", "clip_cov"} <= NOT_PRIME_RL.keys()
    assert "looks at the whole optimiser step" in NOT_PRIME_RL["kl_cov"] and "one sequence" in NOT_PRIME_RL["kl_cov"]
    assert len(skyrl.possible()) > 15
    with pytest.raises(ConfigError, match=r"'grpo' is a .*loss_reduction=token_mean: set it to sequence_mean"):
        skyrl.summed("grpo", "token_mean")
    with pytest.raises(ConfigError, match="compares with the engine"):
        config = SimpleNamespace(policy_loss_type="holdfast_trm_max+dapo", loss_reduction="token_mean")
        skyrl.policy_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), config, torch.ones(1, 2), None)


def test_the_page_counts_them_as_they_are():
    page = (Path(__file__).parents[2] / "docs" / "doors.md").read_text(encoding="utf-8")
    exact = sum(map(prime_rl.exact, PRIME_RL))
    assert f"| {len(TINKER)} of {len(holdfast.list_presets())} rows |" in page
    assert f"| {len(PRIME_RL)}; {exact} of them exact" in page and f"| {len(skyrl.possible())}, each with" in page
    assert page.count(f"| {len(NEMO_RL)}, exact under any split |") == 2 and len(ROLL) == len(NEMO_RL)


def test_settings_reach_the_preset():
    assert tinker.DOOR.objective("trm_max", {"delta": 0.3}).masks[0].delta == 0.3
    with pytest.raises(ConfigError, match="settings belong to a preset's name"):
        tinker.tinker_loss(holdfast.preset("dapo"), low=0.1)


def test_fields_that_a_datum_lacks_are_named():
    one = SimpleNamespace(loss_fn_inputs={"advantages": torch.ones(3), "logprobs": -torch.ones(3)})
    two = SimpleNamespace(loss_fn_inputs={"advantages": torch.ones(3)})
    rows = [-torch.ones(3).requires_grad_() for _ in range(2)]
    with pytest.raises(DataError, match=r"'logprobs'. is missing in datum 1"):
        tinker.tinker_loss("dapo")([one, two], rows)
    short = SimpleNamespace(loss_fn_inputs={"advantages": torch.ones(2), "logprobs": -torch.ones(3)})
    with pytest.raises(DataError, match="has 2 numbers, the sequence has 3 tokens"):
        tinker.tinker_loss("dapo")([one, short], rows)


@pytest.mark.parametrize("name", ["trm_max", "icepop"])
def test_slime_masks_and_weights_and_keeps_the_denominator(name, monkeypatch):
    monkeypatch.setenv("HOLDFAST_OBJECTIVE", name)
    batch, _, inside = case()
    old = (batch.rollout_logprobs + torch.tensor([0.01, 1.0, 0.02, 0.03])[:, None]).clamp(max=-1e-3).float()
    masks = [batch.response_mask[i, :n].long() for i, n in enumerate(LENGTHS)]
    losses = torch.ones(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    out, kept, metrics = slime.correction(
        None,
        pg_loss=losses,
        train_log_probs=[old[i, :n] for i, n in enumerate(LENGTHS)],
        rollout_log_probs=[batch.rollout_logprobs[i, :n].float() for i, n in enumerate(LENGTHS)],
        loss_masks=masks,
        total_lengths=[n + 3 for n in LENGTHS],
        response_lengths=LENGTHS,
    )
    assert kept is masks
    objective = holdfast.preset(name)
    asked = replace(batch, old_logprobs=old, rollout_logprobs=batch.rollout_logprobs.float(), ref_logprobs=None)
    keep, weight = objective.correction(
        replace(asked, advantages=torch.zeros_like(old)), holdfast.TokenStats(logprobs=old)
    )
    expected = torch.where(batch.response_mask, keep * weight, 1.0)[inside]
    torch.testing.assert_close(out.detach(), expected.double())
    if name == "trm_max":
        assert (out[12 : 12 + 5][masks[1].bool()] == 0).all(), "the sequence that left the trust region"
    assert len(metrics["holdfast_kept"]) == sum(LENGTHS)


def test_slime_refuses_pieces_of_responses_and_objectives_without_masks(monkeypatch):
    rows = [torch.zeros(3)]
    with pytest.raises(DataError, match="set --context-parallel-size 1"):
        logs = {"train_log_probs": rows, "rollout_log_probs": rows, "loss_masks": rows}
        slime.correction(None, pg_loss=torch.ones(3), response_lengths=[6], **logs)
    with pytest.raises(ConfigError, match="neither masks nor weights"):
        slime.chosen("dapo")


@dataclass
class TensorData:
    """As Tinker's: numbers that become a tensor."""

    values: list

    def to_torch(self):
        return torch.tensor(self.values)


def test_tinkers_own_container_and_rows_that_nothing_is_trained_on():
    inputs = {
        "advantages": TensorData([1.0, 1.0]),
        "logprobs": TensorData([-1.0, -1.0]),
        "mask": TensorData([0.0, 0.0]),
    }
    live = {name: TensorData([1.0, 1.0]) for name in ("advantages", "mask")} | {"logprobs": TensorData([-1.0, -1.2])}
    rows = [torch.tensor([-1.0, -1.0], requires_grad=True) for _ in range(2)]
    data = [SimpleNamespace(loss_fn_inputs=fields) for fields in (inputs, live)]
    loss, _ = tinker.tinker_loss("dapo")(data, rows)
    loss.backward()
    assert rows[0].grad.tolist() == [0.0, 0.0] and rows[1].grad.abs().sum() > 0
