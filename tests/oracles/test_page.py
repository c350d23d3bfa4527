"""The page of oracles: what the tables say, and nothing that no test runs."""

from collections import Counter

import pytest

from holdfast import Objective
from oracles import trl_rows, verl_rows
from oracles.page import PAGE, render


def test_page_is_what_the_tables_say():
    assert PAGE.read_text(encoding="utf-8") == render(), "stale: run PYTHONPATH=tests python -m oracles.page"


@pytest.mark.parametrize(
    "row",
    [
        *trl_rows.ROWS,
        *trl_rows.ADVANTAGES,
        *verl_rows.ROWS,
        *verl_rows.PENALTIES,
        *verl_rows.MASKS,
        *verl_rows.ADVANTAGES,
    ],
    ids=lambda row: row.name,
)
def test_our_side_of_every_row_is_an_objective(row):
    assert isinstance(row.objective, Objective)


@pytest.mark.parametrize("differences", [trl_rows.DIFFERENCES, verl_rows.DIFFERENCES])
def test_every_difference_has_a_name_of_its_own(differences):
    assert max(Counter(difference.key for difference in differences).values()) == 1
