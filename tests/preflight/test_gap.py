"""The gap and what a switch leaves of it, on numbers worked by hand."""

import pytest

from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.preflight.gap import by_entropy, change, gap_of
from holdfast.types import Rollout


def view(ratios, entropy=None):
    """One prompt for each list of log-ratios."""
    rows = [
        Rollout(
            (group + 1,),
            tuple(range(len(row))),
            (-1.0,) * len(row),
            tuple(-1.0 + r for r in row),
            entropy=None if entropy is None else tuple(entropy[group]),
            group_id=group,
            step=0,
        )
        for group, row in enumerate(ratios)
    ]
    return View(chunk_of(rows))


def test_the_gap_is_the_mean_over_tokens():
    found = gap_of(view([[0.1, -0.3], [0.5]]))
    assert found.tokens == 3
    assert found.size.value == pytest.approx(0.3)
    # e^r - 1 - r: .005171, .040818, .148721
    assert found.kl.value == pytest.approx((0.005171 + 0.040818 + 0.148721) / 3, abs=1e-5)
    # between the means of the two prompts
    assert found.size.low == pytest.approx(0.2) and found.size.high == pytest.approx(0.5)


def test_the_share_is_what_a_switch_takes_away_prompt_by_prompt():
    before = view([[0.1 * k, -0.1 * k] for k in range(1, 11)])
    after = view([[0.02 * k, -0.02 * k] for k in range(1, 11)])
    found = change(before, after)
    assert found.share.value == pytest.approx(0.8)
    # every prompt loses four fifths: resampling prompts together changes nothing
    assert found.share.low == pytest.approx(0.8, abs=1e-6) and found.share.high == pytest.approx(0.8, abs=1e-6)
    assert found.left.size.value == pytest.approx(0.11)
    assert found.kl_removed.value == pytest.approx(gap_of(before).kl.value - gap_of(after).kl.value)
    assert change(after, before).share.value == pytest.approx(-4.0)


def test_tokens_are_told_apart_by_the_trainer_s_entropy():
    rows = by_entropy(view([[0.1, 0.2, 0.3, 0.3]] * 8, [[0.005, 0.7, 5.0, 6.0]] * 8))
    assert [(row.low, row.high, row.tokens) for row in rows] == [(0.0, 0.01, 8), (0.5, 1.0, 8), (4.0, None, 16)]
    assert [row.size.value for row in rows] == pytest.approx([0.1, 0.2, 0.3])
    assert by_entropy(view([[0.1]])) == []
