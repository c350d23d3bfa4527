"""How many tokens could be drawn, as it is written of every sequence."""

from dataclasses import replace

import pytest
import torch

from holdfast.tasks.base import Problem
from holdfast.train.sampling.episodes import Episode
from holdfast.train.show.records import support_sizes

INF = -torch.inf
EPISODE = Episode(0, Problem("?", "", None, "test"), (1,), (5, 6, 7), (True, False, True))
WHOLE = torch.tensor([[INF, -0.5, INF, -1.0], [-1.0, -1.0, -2.0, -2.0]])


@pytest.mark.parametrize(
    ("reported", "truncated", "expected"),
    [
        ({}, False, (0, 0, 0)),
        ({}, True, None),
        ({"distributions": WHOLE}, True, (2, 0, 0)),
        ({"support_ids": torch.tensor([5, 6, 7, 8]), "support_sizes": torch.tensor([1, 3])}, True, (1, 0, 3)),
        ({"top_logprobs": torch.tensor([[-0.1, INF, INF], [-0.5, -1.0, INF]])}, True, (1, 0, 2)),
        ({"top_logprobs": torch.tensor([[-0.1, INF], [-0.5, -1.0]])}, True, None),
    ],
)
def test_sizes_of_the_support_are_those_that_the_engine_tells(reported, truncated, expected):
    """The tool wrote the second of three tokens; 0: of all tokens; not told where the likeliest ones are cut off."""
    assert support_sizes(replace(EPISODE, **reported), truncated) == expected
