"""Small simulated runs and their audits."""

import dataclasses

import pytest

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
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


def make_top_k(rollouts):
    """The same with bounds instead of the exact KL: TV at most √(KL/2) and at least a quarter of it, KL half of it."""
    found = []
    for r in rollouts:
        high = tuple((kl / 2) ** 0.5 for kl in r.kl_exact)
        bounds = {"kl_lower": tuple(kl / 2 for kl in r.kl_exact), "tv_lower": tuple(tv / 4 for tv in high)}
        found.append(dataclasses.replace(r, kl_exact=None, tv_upper=high, **bounds))
    return found


@pytest.fixture(scope="session")
def top_k_of():
    return make_top_k


@pytest.fixture(scope="session")
def audit_of():
    return make_audit


@pytest.fixture(scope="session")
def small_run():
    return make_run
