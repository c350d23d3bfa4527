"""Normalisers: every weight by hand, and shares that add up."""

import pytest
import torch

from holdfast import Counts
from holdfast.core.normalize import reduction_weights

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("reduction", "length", "expected"),
    [
        # 4 tokens, 2 sequences that are not empty
        ("token_mean", None, [[1 / 4] * 3] * 3),
        ("sequence_mean_token_mean", None, [[1 / 6] * 3, [1 / 2] * 3, [1 / 2] * 3]),
        ("sequence_mean_token_sum", None, [[1 / 2] * 3] * 3),
        ("fixed_length", 10, [[1 / 20] * 3] * 3),
    ],
)
def test_weights_by_hand(reduction, length, expected):
    weights = reduction_weights(MASK, Counts.of(MASK), reduction, length, torch.float64)
    torch.testing.assert_close(weights.expand(3, 3), torch.tensor(expected, dtype=torch.float64))


def test_a_mean_of_ones_is_one_however_the_step_is_split():
    total = Counts.of(MASK[:1]) + Counts.of(MASK[1:])
    assert (int(total.sequences), int(total.tokens)) == (2, 4)
    for reduction in ("token_mean", "sequence_mean_token_mean"):
        shares = [(reduction_weights(part, total, reduction) * part).sum() for part in (MASK[:1], MASK[1:])]
        assert sum(shares).item() == pytest.approx(1)


def test_an_empty_step_divides_by_nothing():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for reduction in ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"):
        assert reduction_weights(nothing, Counts.of(nothing), reduction).isfinite().all()


def test_counts_stay_exact_beyond_float32():
    big = Counts(sequences=torch.tensor(3), tokens=torch.tensor(2**24))
    assert int((big + Counts(sequences=torch.tensor(1), tokens=torch.tensor(1))).tokens) == 2**24 + 1
