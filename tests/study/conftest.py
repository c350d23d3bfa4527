"""The small study with changes, and its results without any run."""

from typing import Any

import pytest

from holdfast.study.definition import Study, parse_study
from small_study import STUDY, results_without_runs


@pytest.fixture
def make_study():
    """The study with some of its keys replaced."""

    def make(**changes: Any) -> Study:
        return parse_study(STUDY | changes, "study.toml")

    return make


@pytest.fixture
def results_of():
    """Results in which each configuration ends at these values, seed by seed from 2, in every cell."""
    return results_without_runs
