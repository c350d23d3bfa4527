"""A run that breaks leaves the most there is: the finished steps, a summary that names the step, and no half state."""

import json
import shutil

import pytest
import torch

from holdfast.errors import ConfigError, DataError, EngineError
from holdfast.report.run import write_run_report
from holdfast.train import loop
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.keep.folder import RunFolder
from holdfast.train.sampling.sampler import Synchronous
from holdfast.train.show import metrics
from holdfast.train.show.display import Quiet
from holdfast.train.update import Updater

UNEVEN = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split"}


def numbers(folder):
    return [{k: v for k, v in record.items() if k not in UNEVEN} for record in folder.read_metrics()]


def weights(folder):
    return (latest_checkpoint(folder.checkpoints) / "model" / "model.safetensors").read_bytes()


def failing(function, step, error):
    """`function(run, ...)` that raises in this step."""

    def fails(run, *arguments):
        if run.step == step:
            torch.rand(3)  # what a step has drawn before it broke does not count
            raise error
        return function(run, *arguments)

    return fails


@pytest.mark.slow
def test_a_step_that_breaks_before_it_changes_weights_leaves_a_checkpoint_of_the_one_before(small_run, monkeypatch):
    whole, _ = small_run("whole", "--checkpoint.every", "0")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "score", failing(loop.score, 2, DataError("the judge has gone home")))
        with pytest.raises(DataError, match="gone home"):
            small_run("cut", "--checkpoint.every", "0")
    cut = RunFolder(whole.path.parent / "cut")
    assert latest_checkpoint(cut.checkpoints).name == "step_0002"
    summary = json.loads(cut.summary.read_text())
    assert (summary["finished"], summary["steps"], summary["failed_step"]) == (False, 2, 3)
    assert summary["error"] == "DataError: the judge has gone home" and summary["start_reward"] is not None
    assert write_run_report(cut.path).is_file()
    _, summary = small_run("cut", "--checkpoint.every", "0", resume=True)
    assert summary["finished"] and "error" not in summary
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)


def test_a_step_that_breaks_between_two_updates_keeps_no_half_of_it(small_run, monkeypatch, tmp_path):
    apply, calls = Updater._apply, []

    def fails(self, step):
        calls.append(step)
        if calls.count(3) == 2:
            raise DataError("step 3: the gradient norm is nan")
        return apply(self, step)

    monkeypatch.setattr(Updater, "_apply", fails)
    said = []

    class Listening(Quiet):
        def note(self, text):
            said.append(text)

    with pytest.raises(DataError, match="gradient norm"):
        small_run("cut", "--batch.minibatches", "2", "--checkpoint.every", "0", display=Listening())
    assert calls.count(3) == 2 and any("step 3 broke when it had changed weights" in note for note in said)
    cut = RunFolder(tmp_path / "cut")
    assert latest_checkpoint(cut.checkpoints) is None and json.loads(cut.summary.read_text())["failed_step"] == 3


@pytest.mark.parametrize("what", ["publish", "evaluate"])
@pytest.mark.slow
def test_a_step_is_kept_where_only_what_comes_after_it_breaks(small_run, monkeypatch, what):
    whole, _ = small_run("whole", "--checkpoint.every", "0", "--steps", "3")
    with monkeypatch.context() as patch:
        error = EngineError("no server")
        if what == "publish":
            publish = Synchronous.publish

            def fails(self, model, version):
                publish(self, model, version)
                if version == 2:
                    raise error

            patch.setattr(Synchronous, "publish", fails)
        else:
            patch.setattr(loop, "evaluate", failing(loop.evaluate, 2, error))
        with pytest.raises(EngineError, match="no server"):
            small_run("cut", "--checkpoint.every", "0", "--steps", "3")
    cut = RunFolder(whole.path.parent / "cut")
    assert latest_checkpoint(cut.checkpoints).name == "step_0002"
    assert [record["step"] for record in cut.read_metrics()] == [0, 1, 2]
    assert json.loads(cut.summary.read_text())["failed_step"] == 2
    small_run("cut", "--checkpoint.every", "0", "--steps", "3", resume=True)
    assert numbers(cut)[3] == numbers(whole)[3] and weights(cut) == weights(whole)


@pytest.mark.slow
def test_a_step_that_cannot_be_recorded_is_done_again(small_run, monkeypatch):
    whole, _ = small_run("whole", "--checkpoint.every", "0", "--steps", "3")
    append = RunFolder.append_metrics

    def full(self, record):
        if record["step"] == 2:
            raise OSError(28, "No space left on device")
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", full)
        with pytest.raises(OSError, match="No space left"):
            small_run("cut", "--checkpoint.every", "0", "--steps", "3")
    cut = RunFolder(whole.path.parent / "cut")
    assert latest_checkpoint(cut.checkpoints) is None
    small_run("cut", "--checkpoint.every", "0", "--steps", "3", resume=True)
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)


def test_side_metrics_that_fail_or_are_not_finite_end_nothing(small_run, monkeypatch):
    monkeypatch.setattr(metrics, "bound_metrics", lambda updated: {}["x"])
    update = metrics.update_metrics
    monkeypatch.setattr(metrics, "update_metrics", lambda updated: update(updated) | {"ess": float("nan")})
    folder, summary = small_run("run", "--steps", "2")
    assert summary["finished"]
    line = folder.read_metrics()[1]
    assert line["non_finite"] == {"ess": "nan"} and "ess" not in line and "KeyError" in line["not_measured"]["bounds"]
    assert any("not finite: ess (nan)" in warning for warning in line["warnings"])
    assert write_run_report(folder.path).is_file()


def test_a_damaged_checkpoint_is_passed_over_and_said(small_run):
    whole, _ = small_run("whole", "--checkpoint.keep", "9")
    damaged = whole.checkpoints / "step_0004" / "state.pt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4
    cut = RunFolder(whole.path.parent / "cut")
    shutil.copytree(whole.path, cut.path)
    (cut.checkpoints / "step_0004" / "state.pt").write_bytes(data)
    (cut.checkpoints / ".step_0003.old").mkdir()
    shutil.copytree(whole.checkpoints / "step_0002", cut.checkpoints / "step_0003_best")
    said = []

    class Listening(Quiet):
        def note(self, text):
            said.append(text)

    small_run("cut", "--checkpoint.keep", "9", resume=True, display=Listening())
    assert [note for note in said if "step_0004 is damaged (state.pt" in note and "from step_0002" in note]
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)
    kept = {"step_0002", "step_0004", "step_0004.damaged", "step_0003_best"}
    assert kept == {path.name for path in cut.checkpoints.iterdir() if path.is_dir()}


def test_two_processes_do_not_train_in_one_folder(small_run):
    folder, _ = small_run("run", "--steps", "1")
    before = folder.metrics.read_bytes()
    with folder.lock(), pytest.raises(ConfigError, match="another process is training"):
        small_run("run", "--steps", "2", resume=True)
    assert folder.metrics.read_bytes() == before
