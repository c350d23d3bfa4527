"""The run-time checks that every test runs under: they catch a wrong type and leave Python's generator as it was."""

import random

import pytest
from jaxtyping import TypeCheckError, config

from holdfast.rollout.footer import RowGroup


@pytest.fixture(autouse=True)
def checked():
    config.update("jaxtyping_disable", False)


def test_a_wrong_type_is_caught():
    with pytest.raises(TypeCheckError):
        RowGroup(1, ((b"column", 2),))


def test_checks_leave_the_global_generator_as_it_was():
    """They look at a random item: in a thread of an earlier test that would disturb hypothesis in this one."""
    before = random.getstate()
    for _ in range(8):
        RowGroup(2, (("a", 1), ("b", 2)))
    assert random.getstate() == before
