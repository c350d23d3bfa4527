import torch

from holdfast.integrations.turns import turn_ids


def test_turns_are_the_runs_of_sampled_tokens():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    turns = turn_ids(mask)
    assert turns[0, mask[0]].tolist() == [0, 0, 1, 2]
    assert set(turns[1, mask[1]].tolist()) == {0}
