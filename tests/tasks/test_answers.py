"""Finding and comparing final answers."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.tasks.answers import answer_of, exact, last_number, numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("so it is -3.50.", Fraction(-7, 2)),
        ("$1,234,567.5 in all", Fraction(2469135, 2)),
        ("first 3, then 4", Fraction(4)),
        ("3/4", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("options 1,23", Fraction(23)),
        ("1e100", Fraction(10) ** 100),
        ("50 %", Fraction(1, 2)),
        ("1e-3", Fraction(1, 1000)),
        (".5", Fraction(1, 2)),
        ("+7", Fraction(7)),
        ("none", None),
        ("", None),
        ("1/0", None),
        ("1e999999999", None),
        ("1e-999999999", None),
        ("1E2000", None),
        ("-E+4", Fraction(4)),
        ("e2", Fraction(2)),
        ("3 or .e5", Fraction(5)),
        ("2e", Fraction(2)),
        ("1" * 5000, None),
        ("0." + "1" * 5000, None),
        ("1/" + "3" * 5000, None),
        ("1e" + "0" * 5000 + "1", None),
        ("٣", Fraction(3)),
        ("²", None),
    ],
)
def test_the_last_number_is_read_exactly(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    ("answer", "expected", "reward"),
    [
        ("1,000", "1000.0", 1.0),
        ("0.3333333", "1/3", 1.0),
        ("1", "1.000001", 1.0),
        ("1.000001", "1", 1.0),
        ("0.333", "1/3", 0.0),
        ("0", "0", 1.0),
        ("1e-9", "0", 0.0),
        ("seven", "7", 0.0),
        ("7", "seven", 0.0),
        ("-7", "7", 0.0),
    ],
)
def test_numbers_are_compared_to_a_millionth(answer, expected, reward):
    assert numeric(answer, expected) == reward


NUMBERISH = st.text(st.sampled_from("0123456789+-eE.,/% x²٣"))


@given(st.text() | NUMBERISH, st.text() | NUMBERISH)
@example("-E+4", "4")
@example("9" * 5000, "1")
def test_any_text_is_compared_without_an_error(answer, expected):
    assert numeric(answer, expected) == numeric(expected, answer) in (0.0, 1.0)
    assert numeric(answer, answer) == float(last_number(answer) is not None)


@given(
    st.text(st.characters(exclude_categories=["Nd"], exclude_characters="+-.,/"), max_size=40),
    st.integers(-(10**30), 10**30),
    st.sampled_from(["{}", "{:,}", "{}.0", "{}e0", "{}/1", "{}00%"]),
    st.text(st.characters(exclude_categories=["Nd"], exclude_characters="+-.,/%"), max_size=40),
)
def test_a_number_is_found_whatever_words_stand_around_it(before, value, form, after):
    assert last_number(f"{before}{form.format(value)} {after}") == value


def test_texts_are_compared_after_stripping():
    assert exact(" yes\n", "yes") == exact("yes", " yes\n") == 1.0 and exact("Yes", "yes") == 0.0


def test_the_answer_follows_the_last_marker():
    assert answer_of("#1 then # 2 ", "#") == "2" and answer_of(" all ", "") == "all" and answer_of("1", "#") is None
