"""Logits in half precision leave a grid in an engine's log-probabilities, and those in float32 leave none."""

import pytest
import torch

from holdfast.preflight.grid import Grid, grid_of


def reports(dtype, temperature=1.0, *, rows=4, excluded=0):
    """Log-probabilities of 32 tokens at 8 positions, as an engine makes them of logits in this precision."""
    generator = torch.Generator().manual_seed(0)
    logits = (12 + 6 * torch.randn(rows, 8, 32, generator=generator)).to(dtype).float() / temperature
    logits[..., :excluded] = -torch.inf
    return list(logits.log_softmax(-1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "named"), [(torch.bfloat16, "bfloat16"), (torch.float16, "half precision"), (torch.float32, None)]
)
def test_the_precision_of_the_logits_is_told(dtype, named, temperature):
    found = grid_of(reports(dtype, temperature), temperature)
    assert found.known and found.precision == named
    assert found.share > 0.9 if named else found.share == 0.0


def test_the_temperature_is_taken_out():
    assert grid_of(reports(torch.bfloat16, 0.7), 1.0).precision is None


def test_what_cannot_be_sampled_is_left_out():
    found = grid_of(reports(torch.bfloat16, excluded=22), 1.0)
    assert found.precision == "bfloat16" and found.pairs == 4 * 8 * 9


def test_float32_lies_on_a_grid_as_often_as_chance_says():
    found = grid_of(reports(torch.float32, rows=200), 1.0)
    assert found.pairs == 200 * 8 * 19
    assert found.coarse / found.pairs == pytest.approx(2 * 1e-5 * 2**5, rel=0.5)
    assert found.fine / found.pairs == pytest.approx(2 * 1e-5 * 2**11, rel=0.1)


def test_small_logits_in_bfloat16_may_be_of_either_half_precision():
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, 8, 32, generator=generator).to(torch.bfloat16).float()
    assert grid_of(list(small.log_softmax(-1)), 1.0).precision == "half precision"


def test_few_pairs_tell_nothing():
    few, enough = Grid(99, 99, 99), Grid(100, 51, 51)
    assert not few.known and few.precision is None and few.share == 0.0
    assert enough.precision == "bfloat16" and Grid(100, 50, 51).precision == "half precision"
    assert few + Grid(1, 0, 0) == Grid(100, 99, 99)
    assert grid_of([], 1.0) == Grid()
