"""The page of a running run: every so many steps, seldom where it takes long, and never the end of a run."""

import time

from holdfast.report import run as report
from holdfast.train.keep.folder import RunFolder
from holdfast.train.show.live import LivePage


def page(tmp_path, monkeypatch, every, seconds=(0.0,)):
    """A page whose writing takes these seconds of a clock that stands still otherwise."""
    now, written = [100.0], []

    def write(path):
        written.append(path)
        now[0] += seconds[min(len(written), len(seconds)) - 1]
        if len(written) > 2:
            raise OSError("disk full")

    monkeypatch.setattr(report, "write_run_report", write)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return LivePage(RunFolder(tmp_path), every), now, written


def test_it_is_written_when_due(tmp_path, monkeypatch):
    live, _, written = page(tmp_path, monkeypatch, 3)
    assert [live.after(step) for step in range(1, 7)] == [None] * 6
    assert written == [tmp_path] * 2
    live, _, written = page(tmp_path, monkeypatch, 0)
    assert [live.after(step) for step in range(9)] == [None] * 9 and not written


def test_a_page_that_takes_long_waits_until_that_is_two_percent(tmp_path, monkeypatch):
    live, now, written = page(tmp_path, monkeypatch, 1, seconds=(2.0,))
    live.after(1)
    now[0] += 99.0
    live.after(2)
    assert len(written) == 1
    now[0] += 1.0
    live.after(3)
    assert len(written) == 2


def test_trouble_is_said_once(tmp_path, monkeypatch):
    live, _, _ = page(tmp_path, monkeypatch, 1)
    assert [live.after(step) for step in range(1, 6)] == [
        *(None, None, "report.html could not be written: disk full", None, None)
    ]
