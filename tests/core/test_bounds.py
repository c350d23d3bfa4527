"""The published numbers, sums against brute force, and what the table accepts, derives and refuses."""

import math
import re
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core import bound_formulas as formula
from holdfast.core.bounds import ByPosition, table, unified
from holdfast.core.divergences import Divergence, Kind
from holdfast.errors import DataError

T = 4096
MODULES = ("bound_formulas", "bounds_measured", "certificate", "improvement", "betting", "kl_comparison", "advise")


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


# T(T-1) δ = 4096·4095·1e-4 = 1677.31. ε = √(5e-5) = 7.0711e-3. mixed: 2·4096·√(1e-4·1e-2) = 8192e-3.
# linear: 4·4096·7.0711e-3 = 115.85. The rest are the values stated in arXiv 2512.23075.
KL_FORM = {
    "classical": 1677.31,
    "coupling": 113.84,
    "pinsker_marginal_kl": 34.946,
    "pinsker_marginal_tv": 34.946,
    "mixed_kl": 8.192,
    "mixed_tv": 8.192,
    "adaptive": 34.946,
    "linear": 115.85,
    "sequence_kl": 0.01,
}
# 2·4096·4095·(5e-3)² = 838.66; 4·4096·5e-3·.05 = 4.096; Pinsker-marginal scales with ε: 34.946·5/7.0711 = 24.711.
TV_FORM = {"classical": 838.66, "coupling": 79.91, "pinsker_marginal_tv": 24.711, "mixed_tv": 4.096, "linear": 81.92}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"kl": 1e-4, "seq_kl": 0.01}, KL_FORM),
        ({"kl": 1e-4, "tv": 5e-3, "seq_tv": 0.05}, TV_FORM),
        # √½ · 4 · (0 + √½ + 4094) = 11581.6: the cap at 1 holds from the third position on.
        ({"kl": 1.0, "seq_kl": 1.0}, {"pinsker_marginal_kl": 11582, "mixed_kl": 8192, "sequence_kl": 1}),
        # (1 + 2e-4)^4096 = 2.26851; ½ √(2.26851 - 1 - .8192) = ½ √.44931 = .33515.
        ({"chi2": 2e-4}, {"martingale": 0.3351}),
        # T δ, where S was not measured: 4096 · 1e-4.
        ({"kl": 1e-4}, {"sequence_kl": 0.4096}),
        # ½ path: T(T-1) ε² = 4096·4095·2.5e-5.
        ({"tv": 5e-3}, {"path": 419.328}),
    ],
)
def test_published_and_hand_worked_numbers(inputs, expected):
    rows = table(T, **inputs)
    for name, value in expected.items():
        assert rows[name].value.item() == pytest.approx(value, rel=2e-4), name


def test_closed_form_of_pinsker_marginal():
    # (4/3) · 4096^1.5 · 1e-4 = 4/3 · 262144 · 1e-4 = 34.9525; the sum is 34.946.
    value = table(T, kl=1e-4)["pinsker_marginal_kl"].value.item()
    assert value == pytest.approx(34.9461, abs=1e-4)
    assert value == pytest.approx(4 / 3 * T**1.5 * 1e-4, rel=3e-4)


def test_unified_of_the_published_family_and_of_all():
    rows = table(T, kl=1e-4, seq_kl=0.01)
    published = unified({name: row for name, row in rows.items() if row.published})
    assert published.value.item() == pytest.approx(8.192, rel=1e-9)
    assert published.winner in ("mixed_kl", "mixed_tv")
    assert bool(published.vacuous)
    best = unified(rows)
    assert (best.winner, best.value.item(), bool(best.vacuous)) == ("sequence_kl", pytest.approx(0.01), False)
    assert best.assumptions == rows["sequence_kl"].assumptions


@pytest.mark.parametrize(("horizon", "delta"), [(512, 6.5e-5), (2048, 8.1e-6), (4096, 2.9e-6), (32768, 1.3e-7)])
def test_drift_at_which_the_published_bound_without_seq_kl_reaches_one(horizon, delta):
    # (4/3) T^1.5 δ = 1 gives δ = .75 T^-1.5: 512 -> 6.47e-5, 4096 -> 2.86e-6.
    assert table(horizon, kl=delta)["pinsker_marginal_kl"].value.item() == pytest.approx(1, rel=0.05)


def brute_sums(horizon, tv, kl):
    """Every sum over positions, term by term in plain Python."""
    shift_tv = [min(1, j * tv) for j in range(horizon)]
    shift_kl = [min(1, math.sqrt(j * kl / 2)) for j in range(horizon)]
    both = [min(pair) for pair in zip(shift_tv, shift_kl, strict=True)]
    alive = [min(-math.expm1(j * math.log1p(-tv)) if tv < 1 else float(j > 0), b) for j, b in enumerate(shift_kl)]
    return {
        "coupling": 4 * tv * math.fsum(shift_tv),
        "pinsker_marginal_tv": 4 * tv * math.fsum(shift_kl),
        "adaptive": 4 * tv * math.fsum(both),
        "survival": 2 * tv * math.fsum(alive),
    }


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 400),
    st.floats(-12, 1).map(lambda e: 10**e),
    st.floats(1e-3, 1),
)
def test_closed_sums_equal_the_sums_term_by_term(horizon, kl, share):
    tv = min(1.0, share * math.sqrt(kl / 2))
    rows = table(horizon, kl=kl, tv=tv)
    for name, value in brute_sums(horizon, tv, kl).items():
        assert rows[name].value.item() == pytest.approx(value, rel=1e-9, abs=1e-300), name


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 10**6), st.floats(-12, 1.3).map(lambda e: 10**e))
def test_martingale_equals_fifty_digits(horizon, chi2):
    with mpmath.workdps(50):
        x = mpmath.mpf(chi2)
        exact = mpmath.sqrt((1 + x) ** horizon - 1 - horizon * x) / 2
    found = table(horizon, chi2=chi2)["martingale"].value.item()
    if exact > mpmath.mpf(1e300):
        assert 1e300 < found < math.inf
    else:
        # 1e-13 of the exponent T log(1 + x) remains in the value, 1e-13 · 700 at most.
        assert found == pytest.approx(float(exact), rel=2e-10, abs=1e-300)


def test_martingale_for_small_drift_and_its_first_terms():
    # x T / (2√2) with T(T-1) ~ T²: 1e-9 · 1e6 / 2.8284 = 3.5355e-4 (and + x T / 6 relative).
    assert table(10**6, chi2=1e-9)["martingale"].value.item() == pytest.approx(3.5355e-4 * (1 + 1e-3 / 6), rel=1e-4)
    # T = 1: no later token, no error. T = 2: ½ √(x · x) = x / 2. T = 3: ½ √(x (x + 2x + x²)).
    values = [table(t, chi2=0.5)["martingale"].value.item() for t in (1, 2, 3)]
    assert values == pytest.approx([0, 0.25, 0.5 * math.sqrt(0.5 * (1.5 + 0.25))], rel=1e-12)


def test_split_equals_its_minimum_over_every_split_point_near_enough():
    for horizon, chi2, kl in ((50, 0.01, 0.002), (400, 0.02, 0.01), (300, 0.5, 0.1), (64, 1e-4, 1e-4)):
        tv = min(1.0, math.sqrt(kl / 2))

        def at(k, horizon=horizon, chi2=chi2, kl=kl, tv=tv):
            left = horizon - k
            parting = min(1 - (1 - tv) ** left, math.sqrt(left * kl / 2), math.sqrt((1 + chi2) ** left - 1) / 2)
            return math.sqrt(max((1 + chi2) ** k - 1 - k * chi2, 0) + left * chi2) / 2 + parting

        found = table(horizon, kl=kl, chi2=chi2)["split"].value.item()
        assert found == pytest.approx(min(at(k) for k in range(horizon + 1)), rel=1e-6)


def test_split_does_not_explode():
    # x T = 40: martingale about ½ e^20; split at most 1 + ½ √40 = 4.16.
    rows = table(4096, kl=0.005, chi2=0.01)
    assert rows["martingale"].value.item() > 1e7
    assert rows["split"].value.item() <= 1 + math.sqrt(40.96) / 2


@pytest.mark.parametrize("horizon", [1, 2, 100, 10**6])
def test_every_bound_is_finite_ordered_and_vectorised(horizon):
    kl = torch.logspace(-12, 1, 14, dtype=torch.float64)
    rows = table(horizon, kl=kl, chi2=3 * kl)
    best = unified(rows)
    assert len(best.winners) == 14
    for row in rows.values():
        assert row.value.shape == (14,)
        assert row.value.isfinite().all(), row.name
        assert (row.value.diff() >= 0).all(), f"{row.name} must grow with the drift"
        assert (best.halved <= row.halved).all()
        assert (best.value <= row.value).all()
        assert torch.equal(row.vacuous, row.halved > 1)
    for i in (0, 7, 13):
        single = table(horizon, kl=kl[i].item(), chi2=3 * kl[i].item())
        assert all(rows[name].value[i].item() == pytest.approx(single[name].value.item()) for name in single)
    assert (rows["adaptive"].value <= rows["coupling"].value * (1 + 1e-12)).all()
    assert (rows["adaptive"].value <= rows["pinsker_marginal_kl"].value * (1 + 1e-12)).all()
    assert (rows["survival"].value <= rows["adaptive"].halved * (1 + 1e-12)).all()
    assert (rows["split"].value <= rows["martingale"].value).all()


def test_zero_drift_costs_nothing():
    for row in table(100, kl=0.0, chi2=0.0).values():
        assert row.value.item() == 0, row.name


def test_names_depend_on_the_inputs():
    from_tv = {"classical", "coupling", "adaptive", "linear", "path", "survival"}
    from_kl = from_tv | {"pinsker_marginal_kl", "pinsker_marginal_tv", "sequence_kl"}
    assert set(table(8, tv=0.1)) == from_tv
    assert set(table(8, kl=0.1)) == from_kl
    assert set(table(8, kl=0.1, seq_kl=0.2)) == from_kl | {"mixed_kl", "mixed_tv"}
    assert set(table(8, tv=0.1, seq_tv=0.2)) == from_tv | {"mixed_tv"}
    assert set(table(8, chi2=0.1)) == {"martingale", "split"}
    assert set(table(8, chi2=0.1, kl=0.1)) == from_kl | {"martingale", "split", "cauchy_schwarz"}
    means = torch.full((8,), 0.01, dtype=torch.float64)
    assert set(table(8, by_position=ByPosition(tv=means))) == {"linear"}
    assert set(table(8, by_position=ByPosition(kl=means, chi2=means))) == {"cauchy_schwarz", "sequence_kl", "two_parts"}


def test_numbers_by_position():
    # T = 3, ε = .1, δ = .02 (ε = √(δ/2) exactly). D̄ = (.1, .05, .02):
    # adaptive 4 (.1 · min(.2, √.02 = .141421) + .05 · .1 + .02 · 0) = .4 · .141421 + .02 = .0765685
    # survival 2 (.1 · min(.19, .141421) + .05 · .1) = .0382843; linear 4 · .17
    # χ̄² = (.04, .01, 0), KL = (.02, .01, .004): (1/√2)(√(.04 · .014) + √(.01 · .004)) = .0212053
    # two_parts √(.034/2) + ½ √.05 = .1303840 + .1118034
    positions = ByPosition(tv=f64([0.1, 0.05, 0.02]), kl=f64([0.02, 0.01, 0.004]), chi2=f64([0.04, 0.01, 0.0]))
    rows = table(3, tv=0.1, kl=0.02, by_position=positions)
    expected = {
        "adaptive": 0.0765685,
        "survival": 0.0382843,
        "linear": 0.68,
        "cauchy_schwarz": 0.0212053,
        "two_parts": 0.2421874,
        "sequence_kl": 0.034,
    }
    for name, value in expected.items():
        assert rows[name].value.item() == pytest.approx(value, rel=1e-5), name


def test_cauchy_schwarz_does_not_lose_a_small_kl_behind_a_large_one():
    # One term: √(1e20 · 1e-14 / 2) = √5e5 = 707.107. A total less its first part would leave 300 + 1e-14 - 300 = 0.
    found = table(2, by_position=ByPosition(kl=f64([300.0, 1e-14]), chi2=f64([1e20, 1.0])))
    assert found["cauchy_schwarz"].value.item() == pytest.approx(707.1068, rel=1e-6)


def test_proven_values_of_mixed_and_linear_by_hand():
    # T = 3, ε = .2, V = .25, D̄ = (.1, .2, .1), KL by position (.02, .08, .02): √(½ .02) = .1, √(½ .1) = .2236.
    means = ByPosition(tv=f64([0.1, 0.2, 0.1]), kl=f64([0.02, 0.08, 0.02]))
    rows = table(3, tv=0.2, kl=0.1, seq_tv=0.2, by_position=means)
    # V_1 = min(.1, .1, .2), V_2 = min(.3, .2236, .2): 2 · .2 · (.1 + .2).
    assert rows["mixed_tv"].halved.item() == pytest.approx(0.12)
    assert rows["mixed_tv"].value.item() == pytest.approx(4 * 3 * 0.2 * 0.2)
    # By KL: ε = √.05 = .223607, V = √(½ · .12) = .244949: 2 ε (.1 + √.05).
    assert rows["mixed_kl"].halved.item() == pytest.approx(2 * 0.2236068 * (0.1 + 0.2236068), rel=1e-6)
    # V + Σ D̄ = .2 + .4; without V, at most Σ D̄ again; never above 1 + Σ D̄.
    assert rows["linear"].halved.item() == pytest.approx(0.6)
    assert table(3, by_position=ByPosition(tv=f64([0.1, 0.2, 0.1])))["linear"].halved.item() == pytest.approx(0.8)
    assert table(40, tv=0.1)["linear"].halved.item() == pytest.approx(5.0)
    # Without positions: 2 (T - 1) ε V.
    assert table(3, tv=0.2, seq_tv=0.25)["mixed_tv"].halved.item() == pytest.approx(0.2)
    with pytest.raises(DataError, match=r"reward_sd is 0\.6, allowed is 0 to 0\.5"):
        table(3, chi2=0.1, reward_sd=0.6)


def test_cauchy_schwarz_from_maxima_equals_its_sum():
    # S_{>t} = min((T - t) δ, S): the sum term by term.
    horizon, chi2, kl, total = 50, 0.03, 0.01, 0.2
    expected = sum(math.sqrt(chi2 * min(j * kl, total) / 2) for j in range(horizon))
    found = table(horizon, chi2=chi2, kl=kl, seq_kl=total)["cauchy_schwarz"].value.item()
    assert found == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.5).map(lambda kl: kl if kl > 1e-12 else 0.0), min_size=1, max_size=40))
def test_adaptive_kl_dominates_mixed_kl(kl_by_position):
    kl = f64(kl_by_position)
    peak, total, horizon = kl.max(), kl.sum(), len(kl_by_position)
    by_kl = formula.adaptive(formula.pinsker(kl), torch.ones_like(peak), peak)
    assert by_kl.item() <= math.sqrt(2) * horizon * math.sqrt(peak.item() * total.item()) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"kl": -1e-3}, "kl is -0.001"),
        ({"kl": math.nan}, "kl is nan"),
        ({"chi2": math.inf}, "chi2 is inf"),
        ({"tv": 1.5}, "tv is 1.5, allowed is 0 to 1"),
        ({"tv": 0.1, "seq_tv": 1.01}, "seq_tv is 1.01"),
        ({"kl": 1e-4, "tv": 0.1}, "Pinsker"),
        ({"kl": 1e-4, "seq_kl": 1.0}, "seq_kl = 1 is impossible"),
        ({"kl": 0.5, "seq_kl": 0.02, "seq_tv": 0.2}, "seq_kl ≥ 2·seq_tv²"),
        ({"tv": 0.001, "seq_tv": 0.2}, "seq_tv ≤ horizon·tv"),
        ({"tv": 0.1, "chi2": 0.01}, "chi2 ≥ 4·tv²"),
        ({"kl": torch.tensor([0.1, -0.2])}, "kl is -0.2"),
        ({"by_position": ByPosition(tv=torch.zeros(99))}, "last dimension must be the horizon, 100"),
        ({"kl": 0.1, "by_position": ByPosition(kl=torch.full((100,), 0.2))}, "a mean is at most the maximum"),
        ({"kl": Divergence(torch.tensor(0.1), "k3", Kind.ESTIMATE)}, "of kind estimate"),
        ({"tv": Divergence(torch.tensor(0.1), "binary_tv", Kind.LOWER)}, "of kind lower"),
    ],
)
def test_impossible_inputs_are_named(inputs, words):
    with pytest.raises(DataError, match=words):
        table(100, **inputs)


@pytest.mark.parametrize("horizon", [0, -3, 2.5, True])
def test_horizon_must_be_a_positive_integer(horizon):
    with (
        pytest.raises((DataError, TypeError), match="horizon") if isinstance(horizon, int) else pytest.raises(Exception)
    ):
        table(horizon, kl=0.1)


def test_nothing_to_choose_from():
    with pytest.raises(DataError, match="give at least kl or tv"):
        unified(table(10, seq_tv=0.1))


def test_an_upper_bound_is_welcome_where_a_maximum_is_needed():
    assert table(8, tv=Divergence(f64(0.1), "top_k_tv_upper", Kind.UPPER))["linear"].value.item() == pytest.approx(3.2)


def test_theory_pages_and_code_name_each_other():
    """Every [n] in a docstring is stated in docs/theory, and every function that a page names exists."""
    root = Path(__file__).parents[2]
    pages = "".join(path.read_text() for path in (root / "docs" / "theory").glob("*.md"))
    sources = "".join((root / "src/holdfast/core" / f"{name}.py").read_text() for name in MODULES)
    labels = set(re.findall(r"\[(\d+a?)\]", sources))
    assert labels >= {str(i) for i in range(12)}
    for label in labels:
        assert re.search(rf"(## |\*\*|\| )\[{label}\]", pages), label
    for code in re.findall(r"\*Code:\*([^|]*?)(?:\n\n|$)", pages):
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", code):
            assert re.search(rf"def {name}\b", sources), name


def test_assumptions_are_about_what_was_given():
    from_kl = table(T, kl=1e-4)
    assert from_kl["classical"].assumptions == from_kl["pinsker_marginal_kl"].assumptions  # ε follows from δ
    assert "KL(rollout‖current)(c) ≤ kl" in from_kl["classical"].assumptions[0]
    assert "TV(c) ≤ tv" in table(T, kl=1e-4, tv=1e-3)["classical"].assumptions[0]
    by_position = table(2, tv=0.5, by_position=ByPosition(kl=f64([0.1, 0.1])))
    assert by_position["mixed_tv"].assumptions[1].startswith("seq_kl = Σ_t")


def test_json_row():
    row = table(T, kl=1e-4)["classical"].to_dict()
    assert row["name"] == "classical"
    assert row["vacuous"] is True
    assert row["halved"] == pytest.approx(838.656)
    assert row["assumptions"]


@pytest.mark.parametrize("given", ["tv", "chi2", "kl"])
def test_arrays_of_one_measurement_alone(given):
    """What is not given may be anything, in the shape of what is."""
    values = torch.tensor([1e-4, 1e-3, 1e-2], dtype=torch.float64)
    together = table(512, **{given: values})
    for index, value in enumerate(values.tolist()):
        alone = table(512, **{given: value})
        assert alone.keys() == together.keys()
        for name, bound in alone.items():
            torch.testing.assert_close(together[name].value[index], torch.as_tensor(bound.value), check_dtype=False)
