"""A log of several files with a fault in each, as chunks, and what an audit of any of its files says."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from holdfast.audit.judge import auditor as module
from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks.credit import groups, mask_placement
from holdfast.audit.judge.checks.data import coarse_logprobs, doubled_token, repetition_penalty
from holdfast.audit.judge.checks.drift import drift_at_start, drift_by_environment, drift_with_age, noise_floor
from holdfast.audit.judge.checks.drift import outlier_sequences as outliers
from holdfast.audit.judge.checks.training import entropy_collapse, repeated_data
from holdfast.audit.measure.sample import Sample
from holdfast.audit.measure.statistics import tables
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.show.jsonout import audit_dict
from holdfast.audit.simulate import FAULTS, clean_run

PLANTED = (
    ("nan", "drift_with_age"),
    ("zero_tokens", "sequences_apart"),
    ("doubled_start", "one_seed"),
    ("batch_again", "one_token"),
    ("forced_end", "tool_text"),
    (),
)
SMALL = (
    (coarse_logprobs, "ENOUGH", 400),
    (doubled_token, "MOST", 12),
    (repetition_penalty, "ENOUGH", 900),
    (mask_placement, "ENOUGH", 900),
    (entropy_collapse, "LOOKED_AT", 900),
    (drift_at_start, "ENOUGH", 900),
    (drift_with_age, "MOST_STEPS", 4),
    (drift_by_environment, "ENVIRONMENTS", 3),
    (noise_floor, "MOST_AGES", 2),
    (outliers, "KEPT", 20),
    (repeated_data, "MOST", 40),
    (groups, "MOST", 60),
    (tables, "MOST_KEYS", 4),
    (tables, "MOST_NAMES", 2),
    (module, "FEWEST_PROMPTS", 20),
)
"""What is kept of a log, so small here that every bound is met."""


@pytest.fixture(scope="session")
def planted():
    """Six files of a log, each a list of chunks: 120 rollouts of 3 steps each, with faults in them."""

    @functools.cache
    def planted():
        files = []
        for place, names in enumerate(PLANTED):
            rollouts = clean_run(place % 5, steps=3, prompts=6, group_size=4, mean_length=40, age=1)
            for name in names:
                fault = FAULTS[name]
                rollouts = fault.apply(rollouts, fault.strengths[-1], np.random.default_rng(place))
            moved = [dataclasses.replace(r, step=(r.step or 0) + 2 * place, environment=f"e{place}") for r in rollouts]
            files.append(list(pack(moved, 800)))
        return files

    return planted


@pytest.fixture
def bounded(monkeypatch):
    """Every bound on what is kept, so small that it is met."""
    for where, name, value in SMALL:
        monkeypatch.setattr(where, name, value)


def auditor_of(files, places, log="a log", tokens=1500):
    """The audit of these files of a log, read in this order."""
    made = Auditor(Reading(), log=log, sample=Sample(tokens=tokens))
    for place in places:
        for chunk in files[place]:
            made.feed(chunk, f"file_{place}", place)
    return made


def report_of(auditor):
    """All that an audit says, but the advice; and the rollouts that it kept, on which the advice rests."""
    audit = auditor.result()
    said = audit_dict(audit, SampleAdvice())
    said["notes"] = sorted(said["notes"])
    kept = [(number, repr(rollout)) for number, rollout in (*audit.sample.uniform(), *audit.sample.worst())]
    return json.loads(json.dumps(said)) | {"kept": [list(pair) for pair in kept]}


def differences(one, other, at=""):
    """Where two reports differ by more than 1e-9 of a number."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for k in range(len(one)) for d in differences(one[k], other[k], f"{at}[{k}]")]
    if isinstance(one, float) and isinstance(other, (int, float)):
        return [] if math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) else [(at, one, other)]
    return [] if one == other else [(at, one, other)]
