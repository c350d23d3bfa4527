"""The numbers behind a run's figures, worked by hand from two steps of metrics."""

import re

import pytest

from holdfast.report import run_figures
from holdfast.report.metrics import Metrics
from holdfast.report.survey import Survey

ROWS = (
    {
        "step": 1,
        "accuracy": 0.25,
        "masked_by_length": [0.0, 0.1, 0.2, 0.4],
        "length_quartiles": [10, 20, 30],
        "time_split": {"generate": 2.0, "update": 1.0},
        "drift_by_position": {"edges": [0, 8, 16], "kl_exact_mean": [0.1, 0.2], "kl_exact_max": [0.3, 0.5]},
        "bounds": {"mixed": 0.8, "classical": 4.0},
    },
    {
        "step": 2,
        "accuracy": 0.5,
        "masked_by_length": [0.2, 0.3, 0.4, 0.8],
        "length_quartiles": [12, 24, 36],
        "time_split": {"generate": 4.0, "update": 1.0},
        "drift_by_position": {"edges": [0, 8, 16], "kl_exact_mean": [0.3, 0.2], "kl_exact_max": [0.9, 0.4]},
        "bounds": {"mixed": 1.2, "classical": 8.0},
    },
)


def tables(markup):
    """Every data row of a piece of page, as lists of cell texts."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", markup, re.DOTALL)
    return [
        [re.sub("<[^>]+>", "", c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows
    ]


def test_shares_are_drawn_in_percent():
    rows = tables(run_figures.learning(Metrics(ROWS)))
    assert ["step", "training, sampled"] in rows
    assert ["1", "25"] in rows
    assert ["2", "50"] in rows


def test_drift_by_position_averages_means_and_keeps_the_maximum():
    rows = tables(run_figures.drift(Metrics(ROWS), Survey()))
    # 16 bins over 16 positions; the middles 4 and 12 fall into bins 4 and 12, drawn at 4.5 and 12.5
    assert ["4.5", "0.2", "0.9"] in rows
    assert ["12.5", "0.2", "0.5"] in rows


def test_acceptance_is_the_mean_of_what_was_not_masked():
    rows = tables(run_figures.trust(Metrics(ROWS)))
    # quartile edges average to 11, 22 and 33; 1 - (.4 + .8) / 2 = .4
    assert rows[-4:] == [["up to 11 tokens", "90"], ["11 to 22", "80"], ["22 to 33", "70"], ["over 33 tokens", "40"]]


def test_acceptance_over_steps_has_a_cell_per_step_and_quarter():
    rows = tuple(ROWS[0] | {"step": k, "masked_by_length": [0.0, 0.0, 0.1 * k, None]} for k in range(1, 8))
    cells = tables(run_figures.trust(Metrics(rows)))
    assert ["20 to 30", "7", "30"] in cells
    assert ["over 30 tokens", "7", "–"] in cells


def test_time_is_summed_over_steps():
    rows = tables(run_figures.time(Metrics(ROWS)))
    assert ["generating", "6 s, 75 %"] in rows
    assert ["updating", "2 s, 25 %"] in rows


def test_bounds_are_ordered_and_read():
    rows = tables(run_figures.bounds(Metrics(ROWS)))
    assert rows[:3] == [
        ["bound", "reading", "last step", "lowest", "highest"],
        ["mixed", "tightest, vacuous", "1.2", "0.8", "1.2"],
        ["classical", "vacuous", "8", "4", "8"],
    ]


@pytest.mark.parametrize("section", [run_figures.learning, run_figures.trust, run_figures.bounds, run_figures.time])
def test_a_section_without_data_draws_nothing(section):
    markup = section(Metrics(({"step": 1},)))
    assert "<svg" not in markup
    assert 'class="absent"' in markup
