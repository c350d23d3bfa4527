"""Which objectives need the whole optimiser step before its first gradient."""

import pytest
import torch

from holdfast import preset
from holdfast.objectives.parts.reduce import Normalize
from holdfast.objectives.whole_step import stand_in, whole_step_parts


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("ppo", {}, []),
        ("ppo+tis", {}, []),
        ("trm+sspo", {}, []),
        ("clip_cov", {}, ["clip_cov"]),
        ("trm+sspo+kl_cov", {}, ["kl_cov"]),
        ("tis", {"batch_normalize": True}, ["importance_weight"]),
        ("trm", {"normalize": Normalize(over="accepted")}, ["normalize over 'accepted'"]),
    ],
)
def test_parts_that_look_at_the_whole_step(name, changes, expected):
    assert whole_step_parts(preset(name, **changes)) == expected


def test_an_adaptive_entropy_target_looks_at_the_whole_step():
    assert whole_step_parts(preset("adaptive_entropy"))


def test_a_plan_from_the_mask_alone_has_the_true_counts():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    plan = preset("trm+sspo").prepare(*stand_in(mask), validate=False)
    assert (int(plan.counts.tokens), int(plan.counts.sequences)) == (3, 2)
