"""What a person meets around a run: signals, folders of refused runs, reports of broken ones."""

import os
import signal

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.train import loop
from holdfast.train.keep.folder import RunFolder
from holdfast.train.session import run_session, stop_on_interrupt
from holdfast.train.settings.config import RunConfig


def refused(*arguments, **options):
    raise ConfigError("no such reward")


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", refused)
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    with pytest.raises(ConfigError, match="no such reward"):
        run_session(RunConfig(), folder)
    assert not folder.path.exists()
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    with pytest.raises(ConfigError):
        run_session(RunConfig(), folder, resume=True)
    assert folder.config.is_file(), "a run that was there before stays"


def test_a_run_that_breaks_has_a_report(tmp_path, monkeypatch, capsys):
    folder = RunFolder.create(tmp_path / "run", RunConfig())

    def breaks(*arguments, **options):
        folder.append_metrics({"step": 0, "eval_reward": 0.5, "eval_rewards": [0.5]})
        raise DataError("step 1: the gradient norm is nan")

    monkeypatch.setattr(loop, "train", breaks)
    with pytest.raises(DataError, match="gradient norm"):
        run_session(RunConfig(), folder)
    assert (folder.path / "report.html").is_file() and str(folder.path / "report.html") in capsys.readouterr().out


def test_an_interrupt_before_the_first_step_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    ended = run_session(RunConfig(), folder)
    assert ended.exit_code == 130 and ended.report is None and folder.config.is_file()
    assert "no step is kept yet" in capsys.readouterr().out


@pytest.fixture
def heard():
    """The signals as a terminal's job has them: a shell's background job starts with some of them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
def test_a_hang_up_stops_after_the_step_like_a_termination():
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        said = []
        with stop_on_interrupt(said.append) as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop() and len(said) == 1
            os.kill(os.getpid(), signal.SIGHUP)  # terminals hang up more than once


def test_a_hang_up_that_is_ignored_stays_ignored_and_a_lost_terminal_is_no_error():
    def lost(text):
        raise OSError(5, "Input/output error")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_interrupt(lost) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
