"""The numbers behind a run's figures, worked by hand from two steps of metrics."""

import html
import re

import pytest

from holdfast.report import run_figures
from holdfast.report.metrics import Metrics
from holdfast.report.survey import Survey
from holdfast.report.words import headline

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


def test_drift_by_position_averages_means_and_keeps_the_maximum():
    rows = tables(run_figures.drift(Metrics(ROWS), Survey()))
    # 16 bins over 16 positions; the middles 4 and 12 fall into bins 4 and 12, drawn at 4.5 and 12.5
    assert ["4.5", "0.2", "0.9"] in rows
    assert ["12.5", "0.2", "0.5"] in rows


def test_acceptance_is_the_mean_of_what_was_not_masked():
    rows = tables(run_figures.trust(Metrics(ROWS)))
    # quartile edges average to 11, 22 and 33; 1 - (.4 + .8) / 2 = .4
    assert rows[-4:] == [["up to 11 tokens", "90"], ["11 to 22", "80"], ["22 to 33", "70"], ["over 33 tokens", "40"]]


def test_a_quarter_without_responses_is_absent_not_accepted():
    """All responses but the longest have one length: the second and third quarters are empty."""
    rows = tuple(
        {"step": k, "masked_by_length": [0.5, None, None, 0.25], "length_quartiles": [8, 8, 8]} for k in range(1, 8)
    )
    old = tuple(row | {"masked_by_length": [0.5, 0.0, 0.0, 0.25]} for row in rows)
    for measured in (rows, old):
        markup = run_figures.trust(Metrics(measured))
        assert tables(markup)[1:3] == [["shortest quarter", "50"], ["longest quarter", "75"]]
        assert "Quarters that never held a response are left out." in markup
        assert ["second", "3", "–"] in tables(markup)
    equal = ({"step": 1, "masked_by_length": [0.5, 0.0, 0.0, 0.0], "length_quartiles": [8, 8, 8]},)
    assert [row[0] for row in tables(run_figures.trust(Metrics(equal)))[1:]] == ["shortest quarter"]
    counted = ({"step": 1, "masked_by_length": [0.5, None, None, 0.0], "length_quartiles": [8, 8, 8],
                "length_counts": [7, 0, 0, 1]},)  # fmt: skip
    rows = tables(run_figures.trust(Metrics(counted)))
    assert rows[1:3] == [["shortest quarter", "50"], ["longest quarter", "100"]], "it was there, and nothing masked it"
    full = run_figures.trust(Metrics(ROWS))
    assert "left out" not in full and "rejects long" not in full, "a caption says what the figure shows"


def test_acceptance_over_steps_has_a_cell_per_step_and_quarter():
    rows = tuple(ROWS[0] | {"step": k, "masked_by_length": [0.0, 0.0, 0.1 * k, None]} for k in range(1, 8))
    cells = tables(run_figures.trust(Metrics(rows)))
    assert ["20 to 30", "7", "30"] in cells
    assert ["over 30 tokens", "7", "–"] in cells


def captions_of(markup):
    return html.unescape(" ".join(re.findall(r'<p class="caption">(.*?)</p>', markup)))


def test_a_few_long_responses_are_counted_and_no_headline():
    """Nearly all responses have one length: one long one, rejected at step 2 of 3, is no fall with length."""
    rows = [{"step": k, "masked_by_length": [0.0, None, None, None], "length_counts": [40, 0, 0, 0]} for k in (1, 3)]
    one = {"step": 2, "masked_by_length": [0.1, None, None, 1.0], "length_counts": [20, 0, 0, 1]}
    metrics = Metrics((rows[0], one, rows[1]))
    # 98 of 100 short ones are accepted: 40 + 18 + 40
    assert tables(run_figures.trust(metrics))[1:3] == [["shortest quarter", "98"], ["longest quarter", "0"]]
    assert "they held 100, 0, 0 and 1 responses." in run_figures.trust(metrics)
    assert "Acceptance falls" not in headline(metrics)
    assert "Acceptance falls" not in headline(Metrics((one | {"length_counts": [19, 0, 0, 1]},))), "chance explains one"
    assert "Acceptance falls" in headline(Metrics((one | {"length_counts": [19, 0, 0, 3]},)))
    old = [{k: v for k, v in row.items() if k != "length_counts"} for row in metrics.rows]
    assert "Acceptance falls" not in headline(Metrics(tuple(old))), "there at one of three steps"


def row_of(**values):
    return Metrics(({"step": 1} | values,))


@pytest.mark.parametrize(
    ("metrics", "said", "unsaid"),
    [
        (row_of(kl_exact_mean=0.1), "The mean is over a step's tokens.", "maximum"),
        (row_of(kl_exact_max=0.1), "The maximum is that of its worst token.", "mean is"),
        (row_of(drift_by_position={"edges": [0, 8], "kl_exact_mean": [0.1]}), "Means are averaged", "maximum"),
        (row_of(drift_by_position={"edges": [0, 8], "kl_exact_max": [0.1]}), "The maximum is the run's.", "averaged"),
    ],
)
def test_a_caption_speaks_of_the_lines_that_are_drawn(metrics, said, unsaid):
    captions = captions_of(run_figures.drift(metrics, Survey()))
    assert said in captions and unsaid not in captions


def test_a_column_of_several_steps_is_called_one():
    rows = lambda count: tuple(ROWS[0] | {"step": k} for k in range(count))  # noqa: E731
    assert "mean of the steps" in run_figures.trust(Metrics(rows(41)))
    assert "mean of the steps" not in run_figures.trust(Metrics(rows(40)))


def test_thinned_dots_are_called_thinned():
    dots = [(k, 1.0 + k) for k in range(2000)]
    few, many = (captions_of(run_figures.drift(Metrics(()), Survey(points={"accepted": d}))) for d in (dots[:50], dots))
    assert "are drawn" not in few
    (count,) = re.findall(r"(\d+) of 2,000 are drawn, those that drifted most among them", many)
    assert 300 < int(count) <= 600


def test_sequences_without_logprobs_are_not_counted_as_drawn():
    seen = Survey(sequences=9, ratios=[0.1, 0.2], points={"accepted": [(2, 0.2)]})
    assert "2 tokens of 1 sequences" in run_figures.drift(Metrics(()), seen)


def test_time_is_summed_over_steps():
    rows = tables(run_figures.time(Metrics(ROWS)))
    assert ["generating", "6 s, 75 %"] in rows
    assert ["updating", "2 s, 25 %"] in rows


def test_bounds_are_ordered_and_read():
    markup = run_figures.bounds(Metrics(ROWS))
    assert "none is below 1; the tightest is mixed, 1.2." in markup, "a sentence before the table"
    assert tables(markup)[-3:] == [
        ["bound", "reading", "last step", "lowest", "highest"],
        ["mixed", "tightest, vacuous", "1.2", "0.8", "1.2"],
        ["classical", "vacuous", "8", "4", "8"],
    ]


@pytest.mark.parametrize("section", [run_figures.trust, run_figures.bounds, run_figures.time])
def test_a_section_without_data_draws_nothing(section):
    markup = section(Metrics(({"step": 1},)))
    assert "<svg" not in markup
    assert 'class="absent"' in markup
