"""Learning rates: by hand, and against transformers' schedules, whose warm-up begins at 0."""

import pytest
import torch

from holdfast.train.settings.config import OptimizerConfig
from holdfast.train.settings.schedule import learning_rate_at, set_learning_rate


def rates(steps, **settings):
    config = OptimizerConfig(learning_rate=0.8, **settings)
    return [learning_rate_at(config, step, steps) for step in range(1, steps + 1)]


def test_constant_after_warm_up():
    # 3 warm-up steps: a quarter, a half, three quarters, then all of it.
    assert rates(6, warmup_steps=3) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert rates(3, min_ratio=0.5) == [0.8, 0.8, 0.8]


def test_linear_by_hand():
    # w = 1, 5 steps: steps 2 to 5 have p = 0, 1/4, 2/4, 3/4.
    assert rates(5, warmup_steps=1, schedule="linear") == pytest.approx([0.4, 0.8, 0.6, 0.4, 0.2])
    assert rates(5, warmup_steps=1, schedule="linear", min_ratio=0.5) == pytest.approx([0.4, 0.8, 0.7, 0.6, 0.5])


def test_cosine_by_hand():
    # p = 0, 1/3, 2/3: (1 + cos(60°))/2 = 3/4, (1 + cos(120°))/2 = 1/4.
    assert rates(3, schedule="cosine") == pytest.approx([0.8, 0.6, 0.2])
    assert rates(3, schedule="cosine", min_ratio=0.2) == pytest.approx([0.8, 0.8 * (0.2 + 0.6), 0.8 * (0.2 + 0.2)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_it_is_transformers_schedule(schedule):
    from transformers import get_scheduler

    steps, warmup = 20, 4
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    theirs, scheduler = [], get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(steps, warmup_steps=warmup, schedule=schedule)[warmup:] == pytest.approx(theirs[warmup:])


def test_a_warm_up_as_long_as_the_run_and_steps_beyond_its_end():
    assert rates(2, warmup_steps=5, schedule="cosine") == pytest.approx([0.8 / 6, 0.8 * 2 / 6])
    config = OptimizerConfig(learning_rate=0.8, schedule="linear", min_ratio=0.25)
    assert learning_rate_at(config, 50, 10) == pytest.approx(0.2)


def test_a_rate_in_a_tensor_stays_that_tensor():
    """torchao refuses a rate that became a number."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.5
    optimizer.param_groups[0]["lr"] = 0.1
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
