import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report.charts.scales import number, scale_of


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.27, "0.27"),
        (-0.5, "−0.5"),
        (0.2049, "0.205"),
        (1503.2, "1,503"),
        (12345678, "1.23×10⁷"),
        (4.2e-5, "4.2×10⁻⁵"),
        (-1e-9, "−1×10⁻⁹"),
        (100, "100"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_are_written_for_people(value, written):
    assert number(value) == written


def test_linear_ticks_are_round_and_hold_the_data():
    # (0.78 - 0.27) / 5 = 0.102 -> step 0.2 -> from 0.2 to 0.8
    scale = scale_of([0.27, 0.78])
    assert scale.ticks == (0.2, 0.4, 0.6, 0.8)
    assert (scale.low, scale.high) == (pytest.approx(0.2), pytest.approx(0.8))
    assert scale.fraction(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("ends", [(19.9, 20.13), (1000.1, 1000.4), (-5.001, -5.0), (0.0, 1.0), (12_345.0, 12_346.0)])
def test_neighbouring_ticks_are_written_differently(ends):
    scale = scale_of(ends)
    written = [scale.tick_text(tick) for tick in scale.ticks]
    assert len(set(written)) == len(written)
    for tick, text in zip(scale.ticks, written, strict=True):
        assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(tick, abs=1e-9)


def test_log_ticks_are_powers_of_ten():
    scale = scale_of([3e-4, 40.0], log=True)
    assert scale.ticks == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100))
    # log10(0.1) = -1 lies half way between -4 and 2
    assert scale.fraction(0.1) == pytest.approx(0.5)
    assert [scale.tick_text(t) for t in scale.ticks] == ["10⁻⁴", "10⁻³", "0.01", "0.1", "1", "10", "100"]


def test_a_narrow_log_range_ends_at_steps_of_one_two_five():
    scale = scale_of([0.0011, 0.004], log=True)
    assert scale.ticks == pytest.approx((0.001, 0.002, 0.005))
    assert (scale.low, scale.high) == (pytest.approx(0.001), pytest.approx(0.005))


def test_a_tight_scale_ends_at_the_data():
    scale = scale_of([1, 60], tight=True, ticks=6)
    assert (scale.low, scale.high, scale.ticks) == (1, 60, (10, 20, 30, 40, 50, 60))


@pytest.mark.parametrize("values", [[], [None, math.nan, math.inf], [5.0], [0.0, 0.0], [-3.0, -3.0], [1e308, 5e-324]])
@pytest.mark.parametrize("log", [False, True])
def test_no_value_or_one_value_still_gives_a_scale(values, log):
    scale = scale_of(values, log=log)
    assert scale.low < scale.high
    assert len(scale.ticks) >= 1


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_every_value_lies_inside_and_order_is_kept(values, log, tight):
    scale = scale_of(values, log=log, tight=tight)
    places = [scale.fraction(v) for v in sorted(values)]
    assert all(0 <= p <= 1 for p in places)
    assert places == sorted(places)
    assert scale.low <= min(values) * (1 + 1e-9)
    assert scale.high >= max(values) * (1 - 1e-9)
    assert 1 <= len(scale.ticks) <= 14 or tight


def test_what_is_not_positive_lies_at_the_low_end_of_a_log_scale():
    scale = scale_of([0.1, 10.0], log=True)
    assert (scale.fraction(0.0), scale.fraction(-3), scale.fraction(1.0)) == (0.0, 0.0, pytest.approx(0.5))


def test_whole_numbers_get_whole_ticks():
    assert scale_of([1, 4], tight=True).ticks == (1, 2, 3, 4)
    assert scale_of([1, 4.5], tight=True).ticks == (1, 2, 3, 4)
    assert scale_of([0, 0.5], tight=True).ticks == (0, 0.1, 0.2, 0.3, 0.4, 0.5)
