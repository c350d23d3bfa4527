"""The guard beside verl's trainer: alarms among the metrics that verl logs, and a halt."""

import logging

import numpy as np
import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.integrations.verl.config import HoldfastLossConfig
from holdfast.integrations.verl.trainer import VerlGuard, number


def steps(guard, count, apart):
    rng, halts = np.random.default_rng(0), []
    for step in range(1, count + 1):
        metrics = {
            "critic/score/mean": np.float64(0.3 + 0.002 * step + rng.normal(0, 0.02)),
            "actor/entropy": torch.tensor(0.5 + rng.normal(0, 0.01)),
            "rollout_corr/k3_kl": 3e-4 * (apart if step >= 60 else 1.0) * float(np.exp(rng.normal(0, 0.1))),
            "actor/grad_norm": [0.5, 0.6],
        }
        halts.append(guard.look(step, metrics))
    return metrics, halts


def test_a_healthy_run_has_no_alarm(tmp_path):
    metrics, halts = steps(VerlGuard({"halt_on": "warning", "every": 1}, tmp_path, None), 110, 1.0)
    assert metrics["guard/worst"] == 0.0
    assert not any(halts)


def test_an_alarm_is_logged_and_halts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics, halts = steps(VerlGuard({"halt_on": "critical", "every": 1}, tmp_path, None), 110, 100.0)
    assert metrics["guard/mismatch"] == 2.0
    assert any(halts) and not any(halts[:59])
    assert "guard, critical, step" in caplog.text and "the evidence is in" in caplog.text
    assert list((tmp_path / "guard").glob("step_*/report.html"))


def test_numbers_of_any_library_are_numbers():
    assert number(np.float32(2.0)) == number(torch.tensor(2.0)) == 2.0
    assert number([1.0]) == [1.0]
    assert number(np.zeros(2)).shape == (2,)


def test_settings_are_checked_when_verl_composes_them():
    with pytest.raises(ConfigError, match=r"guard\.halton is no setting"):
        HoldfastLossConfig(guard={"halton": "critical"})
