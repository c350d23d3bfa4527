"""Sets of tokens: all ids in a row, and how many belong to each position."""

import torch

from holdfast.rollout.support import first_rows, named, outside, owners, support_of, support_rows

LOGPROBS = torch.tensor([[0.0, -torch.inf, -torch.inf], [-2.0, -torch.inf, -1.0], [-1.0, -1.0, -1.0]])
IDS, SIZES = torch.tensor([0, 0, 2, 0, 1, 2], dtype=torch.int32), torch.tensor([1, 2, 3], dtype=torch.int32)


def test_the_support_of_distributions_and_of_lists():
    for ids, sizes in (support_of(LOGPROBS), support_rows([[0], [0, 2], [0, 1, 2]])):
        assert torch.equal(ids, IDS) and torch.equal(sizes, SIZES)
    assert [len(x) for x in (*support_of(LOGPROBS[:0]), *support_rows([]))] == [0] * 4


def test_positions_their_beginning_and_their_tokens():
    assert owners(SIZES).tolist() == [0, 1, 1, 2, 2, 2]
    assert [x.tolist() for x in first_rows(IDS, SIZES, 2)] == [[0, 0, 2], [1, 2]]
    assert named(IDS, SIZES, torch.tensor([0, 1, 2])).tolist() == [True, False, True]


def test_what_a_position_does_not_name_is_outside():
    assert torch.equal(outside(IDS, SIZES, 3), LOGPROBS.isneginf())
    ids, sizes = torch.tensor([3], dtype=torch.int32), torch.tensor([1])
    assert outside(ids, sizes, 4).tolist() == [[True, True, True, False]]
