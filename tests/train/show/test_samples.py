"""A few rollouts for the trackers: both ends of the rewards, with what was kept of them and how far they drifted."""

from types import SimpleNamespace

import torch

from holdfast.train.sampling.data import Rollouts
from holdfast.train.show.samples import MOST_CHARACTERS, samples_of
from holdfast.train.update import Updated


def partly(kind, **fields):
    """An object of a kind with the fields that the table reads."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
ROLLOUTS = partly(
    Rollouts,
    rewards=torch.tensor([0.5, 1.0, -0.25]),
    sequences=SimpleNamespace(response_mask=MASK),
    rollout_logprobs=torch.tensor([[-1.0, -1.0, 0.0], [-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]]),
    prompts=SimpleNamespace(problems=[SimpleNamespace(prompt=name) for name in ("p0", "p1", "p2")]),
    texts=["a\u202eb", "x" * 5000, "c"],
)
UPDATED = partly(
    Updated,
    stats=SimpleNamespace(logprobs=torch.tensor([[-1.0, -1.5, 9.0], [-1.0, -2.0, -3.25], [-0.5, 9.0, 9.0]])),
    trust_mask=torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool),
)


def test_rows_go_from_the_lowest_reward_to_the_highest():
    table = samples_of(ROLLOUTS, UPDATED)
    assert table.columns == ("prompt", "response", "reward", "tokens", "kept", "worst |log ratio|")
    assert [row[0] for row in table.rows] == ["p2", "p0", "p1"]
    # Row 0 keeps one of its two tokens; its worst gap is |−1.5 + 1|. What lies beyond the mask counts nowhere.
    assert table.rows[1] == ("p0", "a\\u202eb", 0.5, 2, 0.5, 0.5)
    assert [row[2:] for row in table.rows] == [(-0.25, 1, 0.0, 0.0), (0.5, 2, 0.5, 0.5), (1.0, 3, 1.0, 0.25)]


def test_of_many_the_ends_stay():
    assert [row[0] for row in samples_of(ROLLOUTS, UPDATED, most=2).rows] == ["p2", "p1"]
    assert [row[0] for row in samples_of(ROLLOUTS, UPDATED, most=1).rows] == ["p2"]


def test_a_long_text_is_shown_by_its_ends():
    assert len(samples_of(ROLLOUTS, UPDATED).rows[2][1]) == MOST_CHARACTERS + 3
