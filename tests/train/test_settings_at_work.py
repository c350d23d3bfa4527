"""Settings for longer runs of real models, at work in a small one: schedules, epochs, pass@k, the best checkpoint."""

import json

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.rollout.store import read_rollouts
from holdfast.tasks.pass_at_k import pass_at_k
from holdfast.tasks.verify import InProcess, Score
from holdfast.train.evaluate import evaluate
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.keep.folder import RunFolder
from holdfast.train.session import ending
from holdfast.train.settings.configfile import build_config
from holdfast.train.setup import set_up
from holdfast.train.show.display import Quiet
from train.test_loop import numbers, same_weights

LONGER = ["--optimizer.schedule", "cosine", "--optimizer.warmup_steps", "1", "--checkpoint.best", "true"]


class Heard(Quiet):
    """Remembers what a person would be told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def table(tmp_path):
    """Twelve sums to train on, and options that go through them."""
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(12)]
    for name, chosen in (("train", rows), ("held", rows[:2])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    task = f"{{name = 'jsonl', path = '{tmp_path}/train.jsonl', eval_path = '{tmp_path}/held.jsonl'}}"
    return ["--task", task, "--warm_start", "{clean_steps = 0}", "--evaluation.problems", "2"]


def prompts(folder):
    steps = sorted((folder.path / "rollouts").glob("step_*.parquet"))
    return [rollout.prompt_text for step in steps for rollout in read_rollouts(step)]


@pytest.mark.slow
def test_passes_over_the_table_end_the_run_and_a_schedule_goes_on_after_a_kill(small_run, table):
    """5 passes over 12 problems, 8 a step: ceil(60 / 8) = 8 steps, though 60 are the default."""
    options = [*table, *LONGER, "--data_epochs", "5", "--batch.prompts", "8", "--batch.group_size", "2"]
    options += ["--checkpoint.every", "3", "--evaluation.every", "0"]
    config = {"task": {"name": "jsonl"}}  # `steps` of the small run would be a limit
    assert build_config(config | {"data_epochs": 5}).steps == 60
    whole, summary = small_run("whole", *options, "--steps", "99")
    assert summary["steps"] == 8 and summary["finished"]
    asked = [p for i, p in enumerate(prompts(whole)) if i % 2 == 0]  # groups of two
    assert len(asked) == 64
    assert all(sorted(asked[i : i + 12]) == sorted(set(asked)) for i in range(0, 60, 12)), "each once a pass"
    rates = [record["learning_rate"] for record in whole.read_metrics()[1:]]
    assert rates[0] == 1e-4 and rates[1] == 2e-4 and rates[1:] == sorted(rates[1:], reverse=True)
    stop = iter([False] * 4 + [True])
    cut, summary = small_run("cut", *options, "--steps", "99", stop=lambda: next(stop))
    assert (summary["finished"], summary["steps"]) == (False, 4)
    small_run("cut", *options, "--steps", "99", resume=True)
    assert numbers(cut) == numbers(whole) and same_weights(cut, whole)


def test_several_samples_give_pass_at_k(small_config, tmp_path, warm_starts, monkeypatch):
    config = small_config("--evaluation.samples", "4", "--evaluation.problems", "6")
    run = set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *_: None)
    asked = []

    def noted(problems, texts):
        scores = [Score(float(sum(map(ord, text)) % 3 == 0)) for text in texts]
        asked.append(([p.prompt for p in problems], scores))
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(run, "scorer", noted)
        record = evaluate(run)
    run.close()
    (sampled, scores), (greedy, _) = asked
    assert len(sampled) == 24 and len(greedy) == 6, "greedy decoding has one answer"
    assert sampled[::4] == greedy and all(sampled[i] == sampled[i - i % 4] for i in range(24))
    values = [[s.value for s in scores[i : i + 4]] for i in range(0, 24, 4)]
    assert record["eval_rewards"] == pytest.approx([sum(group) / 4 for group in values])
    assert record["eval_reward"] == pytest.approx(sum(map(sum, values)) / 24)
    for k in (2, 4):
        each = [pass_at_k(4, int(sum(group)), k) for group in values]
        assert record[f"eval_pass_at_{k}"] == pytest.approx(sum(each) / 6)
    assert 0 < record["eval_reward"] < record["eval_pass_at_2"] < record["eval_pass_at_4"]
    assert len({tuple(group) for group in values}) > 1 and "eval_pass_at_1" not in record


@pytest.mark.parametrize(("other", "there"), [(0.4, True), (1.2, False), (-0.1, False)])
def test_pass_at_k_counts_full_rewards_and_no_partial_ones(other, there, small_config, tmp_path, warm_starts):
    config = small_config("--evaluation.samples", "2", "--evaluation.problems", "4", "--evaluation.greedy", "false")
    run = set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *_: None)
    given = iter([1.0, other, other, other, 0.0, 1.0, 1.0, 1.0])
    run.scorer = InProcess(lambda problem, text: next(given))
    record = evaluate(run)
    run.close()
    # one of two right, none, one, both: at least one in three of four problems
    assert record.get("eval_pass_at_2") == (0.75 if there else None) and "eval_accuracy" not in record


def test_the_best_checkpoint_is_kept_and_named(small_run, monkeypatch):
    """Evaluated at every step, saved at no other occasion: the second step is the best of four."""
    rewards = iter([0.1, 0.3, 0.9, 0.2, 0.4])
    monkeypatch.setattr("holdfast.train.loop.evaluate", lambda run: {"eval_reward": next(rewards)})
    options = ["--checkpoint", "{every = 0, keep = 1, best = true}", "--evaluation.every", "1"]
    folder, summary = small_run("best", *options)
    kept = sorted(path.name for path in folder.checkpoints.glob("step_*"))
    assert kept == ["step_0002", "step_0004"]
    found = {key: summary[key] for key in ("best_step", "best_reward", "best_model")}
    assert found == {"best_step": 2, "best_reward": 0.9, "best_model": "checkpoints/step_0002/model"}
    assert "best held-out reward: 0.9 after 2 steps, kept in" in ending(summary, folder, folder.path)
    assert json.loads((folder.checkpoints / "best.json").read_text())["step"] == 2


@pytest.mark.slow
def test_without_best_nothing_more_is_written(small_run):
    folder, summary = small_run("plain", "--checkpoint", "{every = 0, keep = 1}", "--evaluation.every", "1")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_0004"]
    assert not {key for key in summary if key.startswith("best")}


def test_the_best_model_goes_to_the_hub_and_its_failure_ends_nothing(small_run, monkeypatch):
    pushed = []
    monkeypatch.setattr("holdfast.train.loop.login_note", lambda repository: f"log in for {repository}")
    monkeypatch.setattr(
        "holdfast.train.loop.push_model",
        lambda folder, repository, **how: pushed.append((folder, repository, how)) or "ok",
    )
    rewards = iter([0.1, 0.8, 0.2])
    monkeypatch.setattr("holdfast.train.loop.evaluate", lambda run: {"eval_reward": next(rewards)})
    heard = Heard()
    options = ["--steps", "2", "--evaluation.every", "1"]
    best = "{best = true, push_to_hub = 'me/model', hub_private = false}"
    folder, summary = small_run("best", *options, "--checkpoint", best, display=heard)
    assert heard.notes == ["log in for me/model"] and summary["hub"] == "ok"
    assert pushed[0][:2] == (folder.checkpoints / "step_0001" / "model", "me/model")
    assert pushed[0][2]["private"] is False and "1 steps" in pushed[0][2]["message"]
    assert json.loads(folder.summary.read_text())["hub"] == "ok" and "ok" in ending(summary, folder, folder.path)

    rewards = iter([0.1, 0.8, 0.2])
    small_run("last", *options, "--checkpoint", "{push_to_hub = 'me/model'}")
    assert pushed[1][0].parent.name == "step_0002"
    rewards = iter([0.1, 0.8, 0.2])
    small_run("cut", *options, "--checkpoint", "{push_to_hub = 'me/model'}", stop=lambda: True)
    assert len(pushed) == 2, "an interrupted run has nothing to show yet"


def test_exact_kl_that_is_too_large_is_off_and_said_before_the_first_step(small_run, monkeypatch):
    monkeypatch.setattr("holdfast.train.settings.defaults.EXACT_KL_BYTES", 1000)
    heard = Heard()
    folder, _ = small_run("off", "--steps", "1", "--objective", "{preset = 'ppo'}", display=heard)
    assert "kl_exact_mean" not in folder.read_metrics()[1]
    (note,) = heard.notes
    assert "exact KL keeps up to" in note and "it is off" in note
    heard = Heard()
    folder, _ = small_run("mask", "--steps", "1", "--objective.detector", "kl_exact", display=heard)
    assert "kl_exact_mean" in folder.read_metrics()[1], "a mask that reads it keeps it on"
    assert "it is off" not in heard.notes[0]


@pytest.mark.slow
def test_a_checkpoint_of_a_gpu_is_resumed_without_one(small_run, monkeypatch):
    whole, _ = small_run("whole")
    stop = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        cut, _ = small_run("cut", stop=lambda: next(stop))
    assert latest_checkpoint(cut.checkpoints).name == "step_0002"
    small_run("cut", resume=True)
    assert numbers(cut) == numbers(whole) and same_weights(cut, whole)


def test_several_processes_are_refused_before_anything_is_written(small_run, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"(?s)WORLD_SIZE = 2.*--backend verl"):
        small_run("two")
    assert not (tmp_path / "two" / "metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore")
def test_eight_bit_moments_resume_bit_for_bit(small_run):
    pytest.importorskip("torchao.optim")
    options = ["--optimizer.kind", "adamw8bit", "--model.hidden", "64"]
    whole, _ = small_run("whole", *options)
    stop = iter([False, False, True])
    cut, _ = small_run("cut", *options, stop=lambda: next(stop))
    small_run("cut", *options, resume=True)
    assert numbers(cut) == numbers(whole) and same_weights(cut, whole)
