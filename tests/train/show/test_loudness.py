"""`--log-level` and `--quiet`: how much a long command says."""

import argparse
import io

import pytest
from rich.console import Console

from holdfast.train.show.display import Lines, Milestones, Panels, Quiet
from holdfast.train.show.loudness import WarningsOnly, add_loudness, counted, display_among_others, display_of


def level(*arguments):
    parser = argparse.ArgumentParser()
    add_loudness(parser)
    return parser.parse_args(arguments).log_level


def test_the_options():
    assert (level(), level("--log-level", "warning"), level("--quiet"), level("-q")) == (
        "info", "warning", "error", "error",
    )  # fmt: skip
    with pytest.raises(SystemExit):
        level("--log-level", "loud")


def test_each_level_has_its_display():
    pipe, terminal = Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)
    kinds = [type(display_of(pipe, name)) for name in ("info", "warning", "error")]
    assert kinds == [Lines, WarningsOnly, Quiet] and type(display_of(terminal, "info")) is Panels
    kinds = [type(display_among_others(pipe, "a", name)) for name in ("info", "warning", "error")]
    assert kinds == [Milestones, WarningsOnly, Quiet]


def test_warnings_alone_are_said_once():
    out = io.StringIO()
    display = display_among_others(Console(file=out, width=80), "ppo, seed 1", "warning")
    display.begin("model")
    display.note("a note")
    display.warm(1, 2, 0.5)
    for step in (1, 2, 3):
        display.step({"step": step, "reward_mean": 0.5, "warnings": ["3 of 8 failed"] if step > 1 else []}, 9)
    assert out.getvalue() == "ppo, seed 1: step 2/9  warning: 3 of 8 failed\n"


def test_the_end_counts_what_came_again():
    assert counted([("often", [2, 3, 9]), ("once", [4])]) == ["warning at 3 steps, first 2, last 9: often"]
