"""A fixed length in the denominator is that of the responses of this run, unless it is written."""

import pytest

from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.objective import objective_of


@pytest.mark.parametrize(
    ("objective", "length"),
    [
        ({"preset": "dr_grpo"}, 48),
        ({"preset": "dr_grpo", "length": 100}, 100),
        ({"preset": "dr_grpo", "normalize.length": 100}, 100),
        ({"preset": "grpo"}, None),
    ],
)
def test_fixed_length_is_max_tokens(objective, length):
    config = RunConfig.model_validate({"objective": objective, "sampling": {"max_tokens": 48}})
    assert objective_of(config).normalize.length == length
