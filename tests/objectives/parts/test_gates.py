"""Gates: slope against autograd, value and slope at r = 1, limits, order of sign."""

from math import atan, e, exp, log, pi

import pytest
import torch

from holdfast import ConfigError
from holdfast.objectives.parts.gates import (
    Arctan,
    Box,
    Clip,
    Erf,
    Flip,
    Gamma,
    Identity,
    LogArctan,
    LogClip,
    One,
    Sigmoid,
    Softsign,
)

GATES = [
    Identity(),
    One(),
    Clip(0.2, 0.28, 3.0),
    LogClip(0.4, 0.3),
    Box(0.5, 2.0),
    Box(0.1, 0.3, relative=True),
    Box(1.0, 1.0, None, 1.0),
    Sigmoid(1.3, 0.7),
    LogArctan(1.3, 0.7),
    Arctan(1.3, 0.7),
    Erf(1.3, 0.7),
    Softsign(1.3, 0.7),
    Gamma(),
    Flip(0.2, 0.3, 3.0),
]
GRID = torch.linspace(-3, 3, 61, dtype=torch.float64)[None] + 0.0137


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.kind())
@pytest.mark.parametrize("sign", [True, False])
def test_slope_is_the_derivative_of_the_logarithm(gate, sign):
    x = GRID.clone().requires_grad_()
    positive = torch.full_like(GRID, sign, dtype=torch.bool)
    value = gate.log_value(x, positive) + 0 * x
    finite = value.isfinite()
    slope = torch.autograd.grad(value[finite].sum(), x, materialize_grads=True)[0]
    torch.testing.assert_close(gate.slope(GRID, positive)[finite], slope[finite], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gate", [g for g in GATES if g.kind() not in ("one", "flip")], ids=lambda g: g.kind())
@pytest.mark.parametrize("sign", [True, False])
def test_on_policy_weight_is_one(gate, sign):
    """f(1) e(1) = f'(1) = 1: every gate starts as the plain policy gradient. (A score carrier uses f(1) alone.)"""
    if gate == Box(1.0, 1.0, None, 1.0) and sign:
        pytest.skip("a constant: carrier score only")
    at, positive = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[sign]])
    weight = gate.log_value(at, positive).exp() * gate.slope(at, positive)
    if gate.kind() == "gamma":
        weight = gate.log_value(at, positive).exp()  # φ(1) = 1
    assert weight.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.kind())
def test_finite_far_out_and_one_dimension_pooled(gate):
    positive = torch.tensor([[True, False, True]])
    for x in (torch.full((1, 1), 20.0), torch.full((1, 1), -20.0)):
        assert gate.log_value(x, positive).exp().isfinite().all()
        value, slope = gate.log_value(x, positive).exp(), gate.slope(x, positive)
        assert (value * slope).isfinite().all()


def values(gate, ratio):
    x = torch.tensor([[log(ratio)]], dtype=torch.float64)
    return [gate.log_value(x, torch.tensor([[sign]])).exp().item() for sign in (True, False)]


@pytest.mark.parametrize(
    ("gate", "ratio", "expected"),
    [
        (Clip(0.2, 0.28, 3.0), 2.0, [1.28, 2.0]),
        (Clip(0.2, 0.28, 3.0), 5.0, [1.28, 3.0]),
        (Clip(0.2, 0.28), 0.5, [0.5, 0.8]),
        (Clip(1.0, 0.2), 1e-6, [1e-6, 1e-6]),
        (LogClip(0.4, 0.3), e, [exp(0.3), e]),
        (LogClip(0.4, 0.3), 1 / e, [1 / e, exp(-0.4)]),
        (Box(0.5, 2.0), 3.0, [2.0, 2.0]),
        (Box(None, 5.0), 1e-3, [1e-3, 1e-3]),
        (Box(0.1, 0.3, relative=True), 0.2, [0.9, 0.9]),
        (Box(1.0, 1.0, None, 1.0), 0.3, [1.0, 0.3]),
        (Box(1.0, 1.0, None, 1.0), 3.0, [1.0, 1.0]),
        (LogArctan(2.0, 1.0), e, [exp(atan(2.0) / 2), exp(pi / 4)]),
        (Flip(0.2, 0.2, 3.0), 0.2, [3.0, 0.0]),
        (Flip(0.2, 0.2, 3.0), 1.1, [1 / 1.1, 1.1]),
        (Flip(0.2, 0.2, 3.0), 4.0, [0.0, 3.0]),
        (Gamma(), 2 / 3, [(2 / 3) ** 2 * e, (2 / 3) ** 3 * exp(2 / 3)]),
    ],
)
def test_values_by_sign(gate, ratio, expected):
    assert values(gate, ratio) == pytest.approx(expected, rel=1e-12)


def test_soft_sequence_slope_peaks_where_the_sheet_says():
    """e(r) of the sigmoid gate at τ = 1 peaks at r = 1.567."""
    r = torch.linspace(0.5, 3, 25001, dtype=torch.float64)[None]
    slope = Sigmoid(1.0, 1.0).slope(r.log(), torch.ones_like(r, dtype=torch.bool))
    assert r[0, slope.argmax()].item() == pytest.approx(1.567, abs=1e-3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Clip(low=-0.1), r"Clip.low = -0.1: must be in \[0, 1\]"),
        (lambda: Clip(high=float("nan")), "Clip.high = nan: must be at least 0"),
        (lambda: Clip(dual=1.0), "Clip.dual = 1.0: must be above 1"),
        (lambda: LogClip(high=-1.0), "LogClip.high = -1.0"),
        (lambda: Box(2.0, 1.0), "Box.high = 1.0: must be above low = 2"),
        (lambda: Box(2.0, 1.0, relative=True), "Box.low = 2.0"),
        (lambda: Sigmoid(tau_pos=0.0), "Sigmoid.tau_pos = 0.0: must be a finite number above 0"),
        (lambda: Gamma(k_neg=-1.0), "Gamma.k_neg = -1.0"),
        (lambda: Flip(cap=0.5), "Flip.cap = 0.5"),
    ],
)
def test_impossible_values_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
