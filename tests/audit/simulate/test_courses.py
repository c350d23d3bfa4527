"""Simulated courses: healthy ones raise no alarm, planted faults are found where they are plain."""

import numpy as np
import pytest

from holdfast.audit.judge.course import COURSE_CHECKS
from holdfast.audit.simulate.courses import COURSE_FAULTS, course_alarms, healthy_course


@pytest.mark.parametrize("seed", range(12))
def test_healthy_courses_raise_no_alarm(seed):
    assert course_alarms(healthy_course(seed)) == set()


def test_every_check_has_a_fault():
    assert {fault.check for fault in COURSE_FAULTS} == {check.name for check in COURSE_CHECKS}


@pytest.mark.parametrize("fault", COURSE_FAULTS, ids=lambda fault: fault.describe[:40])
def test_every_fault_is_found_at_its_strongest(fault):
    """In one of three runs at least, of 300 steps: short and noisy runs can hide it."""
    seeds = [seed for seed in range(200) if len(healthy_course(seed).steps) == 300][:3]
    planted = [fault.plant(healthy_course(s), fault.strengths[-1], np.random.default_rng(s)) for s in seeds]
    assert any(fault.check in course_alarms(course) for course in planted)
