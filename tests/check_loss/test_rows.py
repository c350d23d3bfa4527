"""A row of the table is found again in somebody else's loss, with its limits, its denominator and its divisor."""

import pytest
import torch

from holdfast import Batch, TokenStats, preset
from holdfast.check_loss.laws import on_policy_law
from holdfast.check_loss.report import check_loss
from holdfast.check_loss.rows import identify, limits
from holdfast.check_loss.shapes import SHAPES
from holdfast.objectives.parts.reduce import Normalize


def loss_of(name, **settings):
    """A loss that is a row of the table, as somebody's function."""
    objective = preset(name, **settings)

    def function(logprobs, old_logprobs, rollout_logprobs, advantages, mask, entropy):
        batch = Batch(
            advantages=advantages, response_mask=mask > 0, old_logprobs=old_logprobs, rollout_logprobs=rollout_logprobs,
            sequence_ids=torch.arange(len(mask)),
        )  # fmt: skip
        return objective(batch, TokenStats(logprobs=logprobs, entropy=entropy)).loss

    return SHAPES["plain"](name, function, {})


@pytest.mark.parametrize(
    ("name", "settings", "below", "said"),
    [
        ("dapo", {}, "old", "`dapo`"),
        ("ppo", {"low": 0.1, "high": 0.3, "dual": 2.5}, "old", "with clip 0.1/0.3, dual 2.5"),
        ("two_sided", {}, "old", "`two_sided`"),
        ("gmpo", {"gate.low": 0.3}, "old", "`gmpo` with clip 0.3/0.4 of log r"),
        ("top_entropy", {}, "old", "`top_entropy`"),
        ("grpo", {"denominator": "rollout"}, "rollout", "`grpo`"),
        ("cispo", {"high": 1.28}, "old", "`cispo` with cap 1.28"),
        ("cispo", {"low": 0.5, "high": 1.5}, "old", "`cispo` with cap 1.5, floor 0.5"),
        ("gspo", {"low": 0.02, "high": 0.05}, "old", "`gspo` with clip 0.02/0.05"),
        ("reinforce", {}, "none", "`reinforce`"),
        ("sapo", {}, "old", "`sapo`"),
        ("dppo_tv", {}, "rollout", "`dppo_tv`"),
        ("tis", {}, "both", "`tis`"),
        ("seq_mask_tis", {}, "both", "`seq_mask_tis`"),
        ("geo_rs", {"normalize": Normalize(over="accepted")}, "rollout", "divided by survivors"),
    ],
)  # fmt: skip
def test_rows_are_found(name, settings, below, said):
    loss = loss_of(name, **settings)
    _, divisor = on_policy_law(loss)
    found, _, rows = identify(loss, divisor)
    assert found == below
    assert rows[0].same and any(said in str(row) for row in rows), rows
    assert name in [row.row for row in rows]


def test_limits_are_measured_to_four_digits():
    found = limits(loss_of("ppo", low=0.2, high=0.28, dual=3.0), "old")
    assert found.zero_above_good == pytest.approx(1.28, abs=1e-4)
    assert found.zero_below_bad == pytest.approx(0.8, abs=1e-4)
    assert found.zero_above_bad == pytest.approx(3.0, abs=1e-3)
    assert found.flat_above is None and found.flat_below is None
    capped = limits(loss_of("cispo", high=1.28), "old")
    assert capped.flat_above == pytest.approx(1.28, abs=1e-3) and capped.zero_above_good is None


def curious(logprobs, old_logprobs, advantages, mask):
    ratio = (logprobs - old_logprobs).exp()
    return -(ratio.sqrt() * 2 * advantages * mask).sum() / mask.sum()


def test_a_loss_that_is_no_row_has_neighbours():
    report = check_loss(SHAPES["plain"]("curious", curious, {}))
    assert "no row of the table is this loss; the nearest:" in report.named()
    assert len(report.rows) == 3 and not report.rows[0].same
    distances = [row.distance for row in report.rows]
    assert distances == sorted(distances) and 0.001 < distances[0] < 0.9
