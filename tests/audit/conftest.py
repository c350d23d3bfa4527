"""Small simulated runs and their audits."""

import pytest

from holdfast.audit.auditor import Auditor
from holdfast.audit.columns import pack
from holdfast.audit.reading import Reading
from holdfast.audit.simulate import clean_run


def make_audit(rollouts, source="made"):
    """The audit of rollouts in memory."""
    auditor = Auditor(Reading())
    for chunk in pack(rollouts):
        auditor.feed(chunk, source)
    return auditor.result()


def make_run(seed=0, **options):
    """A run of 72 short rollouts of 18 prompts, at 3 steps."""
    return clean_run(seed, **({"steps": 3, "prompts": 6, "group_size": 4, "mean_length": 40} | options))


@pytest.fixture(scope="session")
def audit_of():
    return make_audit


@pytest.fixture(scope="session")
def small_run():
    return make_run
