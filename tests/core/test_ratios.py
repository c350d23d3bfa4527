"""Log-ratios and pools: by hand, and against loops over turns."""

import pytest
import torch

from holdfast.core.ratios import LOG_RATIO_LIMIT, log_ratio, masked, pool

MASK = torch.tensor([[True, True, False, True], [False, False, False, False]])
X = torch.tensor([[1.0, 2.0, 9.0, 6.0], [9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)


def test_pools_by_hand():
    assert pool(X, MASK, "sequence_sum").tolist() == [[9.0], [0.0]]
    assert pool(X, MASK, "sequence_mean").tolist() == [[3.0], [0.0]]
    assert pool(X, MASK, "token") is X
    turns = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    assert pool(X, MASK, "turn_sum", turns)[0].tolist() == [3.0, 3.0, 3.0, 6.0]
    assert pool(X, MASK, "turn_mean", turns)[0].tolist() == [1.5, 1.5, 1.5, 6.0]
    assert not pool(X, MASK, "turn_mean", turns)[1].any()


def test_turn_pools_against_a_loop():
    g = torch.Generator().manual_seed(0)
    values = torch.randn(6, 20, generator=g, dtype=torch.float64)
    mask = torch.rand(6, 20, generator=g) > 0.3
    turns = torch.randint(0, 2, (6, 20), generator=g).cumsum(dim=1)
    turns = turns - turns[:, :1]
    pooled = pool(values, mask, "turn_mean", turns)
    for row in range(6):
        for turn in turns[row].unique():
            here = (turns[row] == turn) & mask[row]
            expected = values[row][here].mean() if here.any() else torch.tensor(0.0, dtype=torch.float64)
            torch.testing.assert_close(pooled[row][turns[row] == turn], expected.expand((turns[row] == turn).sum()))


@pytest.mark.parametrize("over", ["sequence_sum", "sequence_mean", "turn_sum", "turn_mean"])
def test_a_pool_is_its_own_adjoint(over):
    """⟨g, pool x⟩ = ⟨pool g, x⟩ for g on the mask: what the closed-form gradient rests on."""
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(3, 12, generator=g) > 0.3
    turns = (torch.arange(12) // 5).expand(3, 12).contiguous()
    x, y = torch.randn(2, 3, 12, generator=g, dtype=torch.float64) * mask
    forward = (pool(x, mask, over, turns) * y).sum()
    backward = (pool(y, mask, over, turns) * x).sum()
    torch.testing.assert_close(forward, backward)


def test_log_ratio_is_clamped_masked_and_blind_to_garbage():
    current = torch.tensor([[-1.0, -50.0, float("nan")]], requires_grad=True)
    reference = torch.tensor([[-2.0, -1.0, float("-inf")]])
    mask = torch.tensor([[True, True, False]])
    ratio = log_ratio(current, reference, mask)
    assert ratio.tolist() == [[1.0, -LOG_RATIO_LIMIT, 0.0]]
    ratio.sum().backward()
    assert current.grad is not None and current.grad.tolist() == [[1.0, 0.0, 0.0]]
    assert masked(reference, mask).tolist() == [[-2.0, -1.0, 0.0]]
