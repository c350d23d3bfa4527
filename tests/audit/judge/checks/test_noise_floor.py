"""Drift at equal weights, apart from staleness."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.checks.drift.noise_floor import NoiseFloor
from holdfast.types import Rollout


def rollouts(age, ratio, count, first=0):
    return [
        Rollout((first + i,), (1,) * 20, (-1.0,) * 20, (-1.0 + ratio,) * 20, weight_versions=(9 - age,) * 20, step=10)
        for i in range(count)
    ]


def k3(r):
    return np.exp(r) - 1 - r


def test_the_freshest_weights_alone(look):
    """60 fresh rollouts at -0.1 and 20 stale at -0.3: k3 0.00484 and 0.04082, mean 0.01383, 65 % above the floor."""
    (got,) = look(NoiseFloor, [*rollouts(0, -0.1, 60), *rollouts(2, -0.3, 20, 60)])
    assert got.evidence["mean |log-ratio|"].value == pytest.approx(0.1, rel=1e-5)
    assert got.evidence["mean k3"].value == pytest.approx(k3(-0.1), rel=1e-4)
    assert got.evidence["share of k3 above the floor"] == pytest.approx(
        1 - k3(-0.1) / (0.75 * k3(-0.1) + 0.25 * k3(-0.3))
    )
    assert got.severity == "info"
    assert "staleness adds 65%" in got.headline


def test_a_high_floor_is_a_warning(look):
    (got,) = look(NoiseFloor, rollouts(0, -0.2, 60))  # k3 0.0187
    assert got.severity == "warning"


def test_staleness_does_not_raise_the_floor(look):
    (got,) = look(NoiseFloor, [*rollouts(0, 0.01, 60), *rollouts(1, -1.0, 60, 60)])
    assert got.severity == "info"


def test_weights_that_change_on_the_way_are_left_out(look):
    mixed = [Rollout((i,), (1, 1), (-1.0, -1.0), (-2.0, -2.0), weight_versions=(9, 10), step=10) for i in range(900)]
    (got,) = look(NoiseFloor, [*mixed, *rollouts(0, 0.0, 60)])
    assert got.evidence["mean |log-ratio|"].value == 0
    assert look(NoiseFloor, mixed) == []


def test_steps_are_compared_with_their_own_weights(look):
    """Version 9 at step 10 and version 4 at step 5 are equally fresh."""
    early = [dataclasses.replace(r, step=5, weight_versions=(4,) * 20) for r in rollouts(0, -0.1, 60, 60)]
    (got,) = look(NoiseFloor, [*rollouts(0, 0.0, 60), *early])
    assert got.evidence["mean |log-ratio|"].value == pytest.approx(0.05, rel=1e-5)
