"""A real run whose engine is int8 and one update old: masks bite, records tell what happened, resume goes on."""

import json

import pytest
import torch

import holdfast
from holdfast.cli import dispatch
from holdfast.rollout.engine import Sampling
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")

TRM = holdfast.preset("trm+sspo+kl_cov", **{"trm_max.delta": 0.02, "delta_avg": 0.01})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = {"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    trainer = runs.mismatched(runs.Mismatched, folder, settings=settings, objective=TRM)
    trainer.train()
    return trainer, folder


def test_masks_bite_and_reward_rises(run):
    trainer, _ = run
    masked = runs.logged(trainer, "trust_region/rejected_sequences")
    assert len(masked) == 30
    assert any(0 < share < 1 for share in masked)
    rewards = runs.logged(trainer, "reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2, rewards


def test_log_has_the_drift_under_our_names(run):
    trainer, _ = run
    record = next(r for r in trainer.state.log_history if "trust_region/rejected_sequences" in r)
    assert {
        "entropy",
        "reward",
        "trust_region/rollout_k3_mean",
        "trust_region/rollout_k2_max",
        "holdfast/covariance_share",
    } <= set(record)
    assert record["trust_region/rollout_k3_mean"] > 0


def test_records_are_what_the_engine_and_the_trainer_said(run):
    _trainer, folder = run
    files = sorted(runs.recorded(folder).glob("*.parquet"))
    assert [f.name for f in files] == [f"step_{step:04d}.parquet" for step in range(1, 31)]
    records = [record for file in files for record in read_rollouts(file)]
    assert len(records) == 30 * 32
    assert len({r.sequence_id for r in records}) == len(records)
    rejected = [r for r in records if not any(r.trust_mask)]
    assert 0 < len(rejected) < len(records)
    assert all("trm" in r.mask_reason for r in rejected)
    assert all(r.mask_reason is None for r in records if all(r.trust_mask))
    for r in records[:64]:
        assert len(r.rollout_logprobs) == len(r.trainer_logprobs) == len(r.response_ids) == len(r.entropy)
        assert r.prompt_text.startswith("<bos>")
        text = runs.TOKENIZER.decode(r.response_ids, skip_special_tokens=True)
        assert r.reward == pytest.approx(runs.small_digits([text])[0])
        assert (r.finish_reason == "stop") == (r.response_ids[-1] == runs.TOKENIZER.eos_token_id)
        k2 = [(a - b) ** 2 / 2 for a, b in zip(r.trainer_logprobs, r.rollout_logprobs, strict=True)]
        largest = max(k2)
        if abs(largest - 0.02) > 1e-4 and largest > 0.02:
            assert not any(r.trust_mask)


def test_audit_opens_the_records(run, tmp_path, monkeypatch, capsys):
    _trainer, folder = run
    monkeypatch.chdir(tmp_path)
    code = dispatch(["audit", str(folder)])
    said = capsys.readouterr()
    assert code in (0, 1), said.err
    assert "960 sequences" in said.out and "30 steps" in said.out


def test_recorded_logprobs_are_the_engines_own(tmp_path):
    trainer = runs.mismatched(runs.Mismatched, tmp_path, settings={"max_steps": 1}, objective=TRM, lag=0)
    trainer.train()
    records = sorted(read_rollouts(runs.recorded(tmp_path) / "step_0001.parquet"), key=lambda r: r.sequence_id)
    # The engine still holds the weights that it sampled these with: version 0 of an int8 copy.
    again = trainer.engine.generate(
        [list(r.prompt_ids) for r in records], Sampling(max_tokens=8), seed=0, sequence_ids=range(8)
    )
    for record, completion in zip(records, again, strict=True):
        assert record.response_ids == completion.token_ids
        torch.testing.assert_close(torch.tensor(record.rollout_logprobs), completion.logprobs)
        assert record.rollout_logprobs != record.trainer_logprobs


def test_rollouts_every(tmp_path):
    runs.mismatched(runs.Mismatched, tmp_path, objective=TRM, rollouts_every=2).train()
    assert sorted(f.name for f in runs.recorded(tmp_path).iterdir()) == ["step_0002.parquet", "step_0004.parquet"]


def test_resume_keeps_an_adapted_coefficient(tmp_path):
    objective = holdfast.preset("adaptive_entropy", target=1.0, adapt=0.01, alpha=0.5)
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    first = runs.mismatched(runs.Mismatched, tmp_path, settings=settings, objective=objective)
    first.train()
    # Entropy is about 2.7 nats, above the target of 1: alpha goes down by .01 after each of the two steps.
    assert first.objective.penalties[0].alpha == pytest.approx(0.48)
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["HoldfastObjective"]["objective"]["penalties"][0]["alpha"] == pytest.approx(0.48)
    second = runs.mismatched(runs.Mismatched, tmp_path, settings=settings | {"max_steps": 4}, objective=objective)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.objective.penalties[0].alpha == pytest.approx(0.46)


def test_evaluation_logs_too(tmp_path):
    settings = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = runs.mismatched(runs.Mismatched, tmp_path, settings=settings, objective=TRM, eval_dataset=runs.PROMPTS)
    trainer.train()
    assert runs.logged(trainer, "eval_trust_region/rollout_k3_mean")[0] > 0
    assert torch.isfinite(torch.tensor(runs.logged(trainer, "eval_loss"))).all()
    assert len(list(runs.recorded(tmp_path).iterdir())) == 1
