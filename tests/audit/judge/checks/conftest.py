"""A healthy run to plant faults in, and one check alone looking at rollouts."""

import functools

import numpy as np
import pytest

from holdfast.audit.course import Course
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.course import checks_for
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.audit.simulate.letters import Letters


@pytest.fixture(scope="session")
def look():
    """look(Check, rollouts): its findings, through chunks of about 5,000 tokens."""

    def look(check, rollouts, tokens=5000):
        auditor = Auditor(Reading(codec=Letters()), checks=[check()])
        for chunk in pack(rollouts, tokens):
            auditor.feed(chunk)
        audit = auditor.result()
        others = {checked.name for checked in checks_for(Course(), of_tokens=True)}  # they look at every log
        return [finding for finding in (*audit.findings, *audit.withheld) if finding.name not in others]

    return look


@pytest.fixture(scope="session")
def healthy():
    """healthy(**what): a simulated run, made once; three turns, a mixture of experts, one update old."""
    return functools.cache(lambda **what: tuple(clean_run(3, **{"mean_length": 100, "flips": 0.01, "age": 1, **what})))


@pytest.fixture(scope="session")
def faulty(healthy):
    """faulty(name, strength): the same run with that fault."""

    def faulty(name, strength, **what):
        return FAULTS[name].apply(healthy(**what), strength, np.random.default_rng(0))

    return faulty
