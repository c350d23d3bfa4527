"""The one-pass form against the two-pass form: the same numbers, to the last bit where they are the same sums."""

import pytest
import torch

from holdfast.errors import DataError
from holdfast.kernels import Chunked, Head, Tiling, lm_head_loss, lm_head_stats

TILING = Tiling(16, 64)


def loss_of(advantages, old, alpha=0.1):
    """A clipped surrogate with an entropy bonus: some rows end without a gradient."""

    def token_loss(stats, rows):
        ratio = torch.exp(stats.logprobs - old[rows])
        a = advantages[rows]
        bonus = 0 if stats.entropy is None else alpha * stats.entropy * (a != 0)
        return -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) - bonus

    return token_loss


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("outputs", [(), ("entropy",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_two_pass_form(tools, plain, outputs, dtype):
    case = tools.make_case(rows=45, plain=plain).to(dtype)
    g = torch.Generator().manual_seed(7)
    advantages = torch.randn(45, generator=g, dtype=dtype)
    advantages[16:32] = 0  # a whole block without gradient
    advantages[::5] = 0
    with torch.no_grad():
        old = lm_head_stats(case.hidden, case.head, case.targets, **case.settings).logprobs
    token_loss = loss_of(advantages, old + 0.2 * torch.randn(45, generator=g, dtype=dtype))
    results = []
    for one_pass in (True, False):
        leaves = case.trainable()
        common = {"outputs": outputs, **case.settings}
        if one_pass:
            loss, stats = lm_head_loss(leaves.hidden, leaves.head, leaves.targets, token_loss, tiling=TILING, **common)
            assert not stats.logprobs.requires_grad
        else:
            how = Chunked(TILING)
            stats = lm_head_stats(leaves.hidden, leaves.head, leaves.targets, implementation=how, **common)
            loss = token_loss(stats, slice(0, 45)).sum()
        (3 * loss).backward()
        bias = () if plain else (leaves.head.bias.grad,)
        results.append((stats, loss.detach(), leaves.hidden.grad, leaves.head.weight.grad, *bias))
    (one, *grads_one), (two, *grads_two) = results
    assert torch.equal(one.logprobs, two.logprobs)
    assert not outputs or torch.equal(one.entropy, two.entropy)
    for a, b in zip(grads_one, grads_two, strict=True):
        assert tools.error(a, b) < (1e-13 if dtype == torch.float64 else 2e-6)


def test_divergences_come_along(tools):
    case = tools.make_case()
    loss, found = lm_head_loss(
        case.hidden,
        case.head,
        case.targets,
        lambda stats, rows: stats.kl_rollout,
        rollout=case.rollout,
        outputs=tools.ALL,
        tiling=TILING,
        **case.settings,
    )
    expected = tools.oracle(case)
    for name in tools.ALL:
        assert tools.error(getattr(found, name), expected[name]) < 1e-3, name
    assert loss.item() == pytest.approx(expected["kl_rollout"].sum().item(), rel=1e-3)
    assert not loss.requires_grad


def test_only_the_hidden_states_and_16_bits(tools):
    case = tools.make_case(plain=True).to(torch.bfloat16)
    hidden = case.hidden.clone().requires_grad_()
    loss, _ = lm_head_loss(hidden, case.head, case.targets, lambda stats, rows: -stats.logprobs)
    loss.backward()
    reference = case.to(torch.float64).trainable()
    (expected,) = torch.autograd.grad(-tools.oracle(reference)["logprobs"].sum(), reference.hidden)
    assert hidden.grad.dtype == torch.bfloat16
    assert tools.error(hidden.grad, expected) < 4e-3  # the rounding of the result


def test_bad_use():
    hidden, weight, targets = torch.ones(3, 2, requires_grad=True), torch.ones(5, 2), torch.arange(3)
    with pytest.raises(DataError, match=r"token_loss returned \[\] for 3 rows"):
        lm_head_loss(hidden, weight, targets, lambda stats, rows: stats.logprobs.sum())
    with pytest.raises(DataError, match=r"1 of 3 rows \(1\)"):
        bad = torch.tensor([[1.0, 1.0], [1.0, torch.nan], [1.0, 1.0]])
        lm_head_loss(bad, weight, targets, lambda stats, rows: -stats.logprobs)
    loss, _ = lm_head_loss(hidden, weight, targets, lambda stats, rows: -stats.logprobs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


def test_no_rows():
    hidden, weight = torch.zeros(0, 2, requires_grad=True), torch.ones(5, 2, requires_grad=True)
    loss, stats = lm_head_loss(
        hidden, Head(weight), torch.zeros(0, dtype=torch.int64), lambda stats, rows: stats.logprobs
    )
    loss.backward()
    assert loss == 0
    assert stats.logprobs.shape == (0,)
    assert (weight.grad == 0).all()
