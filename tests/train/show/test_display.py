"""The display: the promised numbers on a terminal and in a log, and warnings that cannot be missed."""

import io

from rich.console import Console

from holdfast.train.show.display import Lines, Milestones, Panels, Quiet, cells_of

RECORD = {
    "step": 3,
    "reward_mean": 0.5,
    "accuracy": 0.25,
    "entropy": 0.75,
    "kl_exact_mean": 1.31e-3,
    "kl_exact_max": 0.43,
    "masked_sequences": 0.125,
    "clip_share": 0.031,
    "warnings": ["all rewards equal 0"],
}
PROMISED = ("reward", "accuracy", "entropy", "drift mean", "drift max", "masked", "clipped")


def test_every_promised_number_is_shown():
    assert tuple(label for label, _ in cells_of(RECORD)) == PROMISED
    assert dict(cells_of(RECORD)) == {
        "reward": "0.500",
        "accuracy": "0.250",
        "entropy": "0.750",
        "drift mean": "1.3e-03",
        "drift max": "4.3e-01",
        "masked": "12%",
        "clipped": "3.1%",
    }


def test_sampled_drift_stands_in_where_exact_was_not_measured():
    record = {"rollout_k3_mean": 1e-3, "rollout_k2_max": 2e-1}
    assert cells_of(record) == [("drift mean", "1.0e-03"), ("drift max", "2.0e-01")]
    proven = record | {"kl_lower_mean": 8e-4, "kl_lower_max": 0.15}  # what the top-K prove, and what a mask reads
    assert cells_of(proven) == [("drift mean", "8.0e-04"), ("drift max", "1.5e-01")]


def test_a_pipe_gets_one_plain_line_per_step():
    out = io.StringIO()
    lines = Lines(Console(file=out, width=20))
    lines.warm(5, 10, 0.5)
    lines.step(RECORD, 10)
    text = out.getvalue().splitlines()
    assert text[0] == "warm start 5/10  loss 0.5000"
    assert text[1].startswith("step 3/10  reward 0.500  accuracy 0.250")
    assert text[2] == "  warning: all rewards equal 0"
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_panel():
    out = io.StringIO()
    with Panels(Console(file=out, force_terminal=True, width=120)) as panels:
        panels.warm(1, 2, 0.5)
        panels.note("[ledger] a note with brackets")
        panels.step(RECORD, 10)
    text = out.getvalue()
    for words in (*PROMISED, "3/10", "0.250", "all rewards equal 0", "[ledger] a note", "warm start"):
        assert words in text


def test_time_left_is_extrapolated(monkeypatch):
    now = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr("holdfast.train.show.display.time.monotonic", lambda: next(now))
    out = io.StringIO()
    lines = Lines(Console(file=out))
    for step in (1, 2, 3):
        lines.step({"step": step}, 10)
    # 10 s a step: 8 steps left after step 2, 7 after step 3.
    assert [line.rsplit("left ")[1] for line in out.getvalue().splitlines()] == ["?", "1:20", "1:10"]


def test_who_shows_one_run_says_what_it_is_and_who_shows_many_does_not():
    for kind, shown in ((Lines, True), (Panels, True), (lambda console: Milestones(console, "ppo"), False)):
        out = io.StringIO()
        kind(Console(file=out, width=80)).begin("model     tiny")
        assert ("model     tiny" in out.getvalue()) is shown
    assert Quiet().begin("model") is None


def test_texts_of_others_do_not_steer_the_terminal():
    for kind in (Lines, Panels):
        out = io.StringIO()
        display = kind(Console(file=out, force_terminal=kind is Panels, width=120))
        display.note("first \x1b]0;title\x07 line\nsecond line")
        display.step(RECORD | {"warnings": ["a reward said \x1b[2J"]}, 4)
        if kind is Panels:
            display.console.print(display._panel())
        assert "first \\x1b]0;title\\x07 line\nsecond line" in out.getvalue().replace("\r", "")
        assert "a reward said \\x1b[2J" in out.getvalue()
        assert "\x1b]0;" not in out.getvalue() and "\x1b[2J" not in out.getvalue()


def test_a_warning_is_said_once_and_counted():
    """What differs in its numbers alone is the same warning."""
    records = [
        {"step": 1, "warnings": ["62% of responses were cut off"]},
        {"step": 2, "warnings": ["7.5% of responses were cut off", "all rewards equal 0"]},
    ]
    out = io.StringIO()
    lines = Lines(Console(file=out, width=80))
    for record in records:
        lines.step(record, 10)
    assert [line for line in out.getvalue().splitlines() if "warning" in line] == [
        "  warning: 62% of responses were cut off", "  warning: all rewards equal 0",
    ]  # fmt: skip
    out = io.StringIO()
    with Panels(Console(file=out, force_terminal=True, width=120)) as panels:
        for record in records:
            panels.step(record, 10)
    assert "7.5% of responses were cut off (2 steps, last 2)" in out.getvalue()
