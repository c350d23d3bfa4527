"""The betting test of improvement: its definition, its limits, and how often it is wrong when it is always watched."""

import math

import pytest
import torch

from holdfast.core.betting import STAKES, EProcess, fewest_units
from holdfast.errors import ConfigError, DataError


def test_e_values_by_hand():
    # Units .5, -1, .2: per stake λ the wealth is (1 + .5 λ)(1 - λ)(1 + .2 λ); E_n is the mean over the six stakes.
    test = EProcess().update(torch.tensor([0.5, -1.0])).update(torch.tensor([0.2]))
    wealth = [[1 + 0.5 * s, (1 + 0.5 * s) * (1 - s), (1 + 0.5 * s) * (1 - s) * (1 + 0.2 * s)] for s in STAKES]
    expected = [sum(w[i] for w in wealth) / 6 for i in range(3)]
    assert STAKES == (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
    assert test.log_e().exp().tolist() == pytest.approx(expected)
    assert test.e_value == pytest.approx(expected[-1])
    # Against a gain of .25: ((1 + x) / 1.25 - 1) = .2, -1, -.04.
    wealth = [(1 + 0.2 * s) * (1 - s) * (1 - 0.04 * s) for s in STAKES]
    assert test.log_e(0.25)[-1].exp().item() == pytest.approx(sum(wealth) / 6)


def test_certified_when_e_first_reaches_one_over_alpha():
    # (1.18^n + 1.12^n + 1.06^n + 1.02^n + 1.006^n + 1.002^n) / 6 first reaches 20 at the n found here term by term.
    n = next(n for n in range(1, 200) if sum((1 + 0.2 * s) ** n for s in STAKES) / 6 >= 20)
    test = EProcess().update(torch.full((n - 1,), 0.2))
    assert not test.certified and test.lower() < 0
    test = test.update(torch.tensor([0.2]))
    assert (test.certified, test.certified_at) == (True, n)
    assert test.lower() == pytest.approx(0, abs=0.01) and test.lower() >= 0
    assert test.update(torch.full((30,), 0.2)).certified_at == n
    ruined = test.update(torch.full((50,), -1.0))  # what was reached once stays proven
    assert ruined.certified_at == n and ruined.lower() == pytest.approx(test.lower()) and ruined.e_value < 1
    assert EProcess(level=0.5).update(torch.full((n - 1,), 0.2)).certified


def test_before_any_prompt_nothing_is_known():
    empty = EProcess()
    assert (empty.e_value, empty.certified, empty.lower(), empty.prompts_needed()) == (1.0, False, -1.0, None)
    assert EProcess().update(torch.full((30,), -1.0)).lower() == -1.0
    assert EProcess().update(torch.full((30,), -0.1)).prompts_needed() is None


def test_the_lower_limit_is_the_largest_gain_rejected():
    test = EProcess().update(torch.rand(400, generator=torch.Generator().manual_seed(0)))
    low = test.lower()
    assert 0.3 < low < 0.5
    assert test.log_e(low - 1e-6).max() >= math.log(20) > test.log_e(low + 1e-6).max()


def test_prompts_needed_are_about_enough():
    # All units .2: the best stake grows by log 1.18 = .165514 a prompt; (log 6 + log 20) / .165514 = 28.9.
    assert EProcess().update(torch.full((3,), 0.2)).prompts_needed() == 29
    draw = torch.Generator().manual_seed(1)
    units = (torch.rand(4000, generator=draw) < 0.55).double() * 2 - 1  # ±1, mean .1
    needed = EProcess().update(units[:60]).prompts_needed()
    assert EProcess().update(units[: 4 * needed]).certified


@pytest.mark.parametrize("null", ["coins", "rare loss", "changing"])
def test_a_null_that_is_always_watched_alarms_seldom(null):
    """1,000 runs of 500 prompts without a gain, looked at after each: the mixture may alarm in 5 %."""
    draw = torch.Generator().manual_seed(3)
    shape = (1000, 500)
    if null == "coins":
        units = (torch.rand(shape, generator=draw, dtype=torch.float64) < 0.5) * 2.0 - 1
    elif null == "rare loss":
        units = torch.where(torch.rand(shape, generator=draw) < 0.01, -0.99, 0.01).double()
    else:  # the policy gains for 100 prompts what it loses in the next, over and over
        drift = torch.where((torch.arange(500) // 100) % 2 == 0, -0.05, 0.05)
        units = (torch.rand(shape, generator=draw, dtype=torch.float64) < 0.5) * 1.0 - 0.5 + drift
    alarms = sum(EProcess().update(row).certified for row in units)
    assert alarms <= 50
    watched = sum(EProcess(level=0.5).update(row).certified for row in units)
    assert watched > alarms  # the count can rise


@pytest.mark.parametrize("value", [-1.1, math.nan, math.inf])
def test_units_outside_their_range_are_refused(value):
    with pytest.raises(DataError, match="from -1 on"):
        EProcess().update(torch.tensor([0.1, value]))


def test_bad_levels_and_gains_are_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        EProcess(level=1.0)
    with pytest.raises(ConfigError, match=r"gain is -1\.0, allowed is above -1"):
        EProcess().log_e(-1.0)


def test_the_highest_is_what_certifies():
    test = EProcess().update(torch.full((30,), 0.2)).update(torch.full((50,), -1.0))
    assert test.highest == pytest.approx(test.log_e().max().exp().item()) and test.highest >= 20 > test.e_value
    assert EProcess().highest == 1.0


@pytest.mark.parametrize(("level", "highest"), [(0.95, 9.0), (0.99, 9.0), (0.95, 1.0), (0.5, 0.1)])
def test_fewest_units_are_as_many_as_it_takes(level, highest):
    fewest = fewest_units(level, highest)
    assert EProcess(level).update(torch.full((fewest,), highest)).certified
    assert not EProcess(level).update(torch.full((fewest - 1,), highest)).certified
    with pytest.raises(ConfigError, match="allowed are levels between 0 and 1, highest above 0"):
        fewest_units(1.0, highest)
