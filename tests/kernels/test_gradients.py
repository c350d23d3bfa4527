"""Gradients of the head against autograd over all logits in float64, and the rows that cost nothing."""

import pytest
import torch

from holdfast.kernels import Chunked, Head, Tiling, lm_head_stats

WAYS = ["naive", "chunked", Chunked(Tiling(16, 64))]


def gradients(case, logprobs, entropy, coefficients):
    a, b = coefficients
    loss = (logprobs * a.to(logprobs.dtype)).sum() + (0 if entropy is None else (entropy * b.to(entropy.dtype)).sum())
    leaves = [x for x in (case.hidden, case.head.weight, case.head.bias) if x is not None and x.requires_grad]
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_against_autograd_in_float64(tools, way, plain, with_entropy):
    case = tools.make_case(plain=plain)
    g = torch.Generator().manual_seed(2)
    coefficients = torch.randn(2, 37, generator=g)
    if not with_entropy:
        coefficients[1] = 0
    reference = case.to(torch.float64).trainable()
    values = tools.oracle(reference)
    expected = gradients(reference, values["logprobs"], values["entropy"], coefficients)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        leaves = case.to(dtype).trainable()
        found = lm_head_stats(leaves.hidden, leaves.head, leaves.targets, implementation=way, **case.settings)
        entropy = found.entropy if with_entropy else None
        for f, e in zip(gradients(leaves, found.logprobs, entropy, coefficients), expected, strict=True):
            assert f.dtype == dtype
            assert tools.error(f, e) < limit


def test_gradcheck():
    g = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (11, 3), (11,))
    )
    targets = torch.randint(11, (5,), generator=g)

    def head(hidden, weight, bias):
        how = Chunked(Tiling(2, 4))
        stats = lm_head_stats(hidden, Head(weight, bias, 0.8, 3.0), targets, temperature=0.9, implementation=how)
        return stats.logprobs, stats.entropy

    assert torch.autograd.gradcheck(head, (hidden, weight, bias))


@pytest.mark.parametrize("way", ["naive", "chunked"])
@pytest.mark.parametrize(("confident", "offset"), [(False, 0.0), (True, 0.0), (False, 1000.3)])
def test_the_gradient_of_a_row_sums_to_zero(tools, way, confident, offset):
    if offset and way == "naive":
        pytest.skip("plain autograd rounds the log-sum-exp to float32: 6e-5 at 1000")
    case = tools.make_case(rows=1, vocabulary=4000, width=16, spread=4.0, plain=True)
    bias = torch.full((4000,), offset)
    if confident:
        bias[case.targets] = 30.0
    bias.requires_grad_()
    stats = lm_head_stats(case.hidden, Head(case.head.weight, bias), case.targets, implementation=way)
    (stats.logprobs - 0.5 * stats.entropy).sum().backward()
    assert abs(bias.grad.double().sum()) < 1e-6


def test_a_confident_token_keeps_its_gradient():
    # p_y = 1/(1 + 9 e^-20): 1 - p_y = 1.85e-8 is below float32's resolution at 1.
    bias = torch.zeros(10)
    bias[4] = 20.0
    bias.requires_grad_()
    stats = lm_head_stats(torch.ones(1, 1), Head(torch.zeros(10, 1), bias), torch.tensor([4]), implementation="chunked")
    stats.logprobs.sum().backward()
    expected = 9 * 2.061153622438558e-09 / (1 + 9 * 2.061153622438558e-09)
    assert bias.grad[4].item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def seen(monkeypatch):
    """How many rows each backward was given."""
    rows, backward = [], Chunked.backward

    def count(self, problem, gradient, wanted):
        rows.append(problem.hidden.shape[0])
        return backward(self, problem, gradient, wanted)

    monkeypatch.setattr(Chunked, "backward", count)
    return rows


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_rows_without_gradient_cost_nothing_and_change_nothing(tools, share, seen):
    case = tools.make_case(rows=40).trainable()
    live = torch.arange(40) < 40 * share
    live = live[torch.randperm(40, generator=torch.Generator().manual_seed(4))]
    coefficients = torch.linspace(1, 2, 40) * live
    results = []
    for rows in (slice(None), live):
        how = Chunked(Tiling(16, 64))
        settings = {"temperature": case.settings["temperature"][rows], "implementation": how}
        stats = lm_head_stats(case.hidden[rows], case.head, case.targets[rows], **settings)
        weights = coefficients[rows]
        results.append(gradients(case, stats.logprobs, stats.entropy, (weights, weights)))
    assert seen == [int(live.sum())] * 2 * bool(live.any())
    for everything, only_live in zip(*results, strict=True):
        torch.testing.assert_close(everything, only_live, rtol=0, atol=0)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_frozen_head(tools, plain, with_entropy, seen):
    case = tools.make_case(plain=plain)
    how, trained = Chunked(Tiling(16, 64)), case.trainable()
    hidden = case.hidden.clone().requires_grad_()
    coefficients = torch.randn(2, 37, generator=torch.Generator().manual_seed(5))
    frozen = lm_head_stats(hidden, case.head, case.targets, implementation=how, **case.settings)
    both = lm_head_stats(trained.hidden, trained.head, case.targets, implementation=how, **case.settings)
    assert torch.equal(frozen.logprobs, both.logprobs)
    pick = (lambda s: s.entropy) if with_entropy else (lambda s: None)
    expected = gradients(trained, both.logprobs, pick(both), coefficients)[0]
    seen.clear()
    loss = (frozen.logprobs * coefficients[0]).sum()
    if with_entropy:
        loss = loss + (frozen.entropy * coefficients[1]).sum()
    loss.backward()
    assert seen == ([37] if with_entropy else []), "without an entropy gradient nothing is computed again"
    assert tools.error(hidden.grad, expected) < 2e-6


def test_repeats_to_the_last_bit(tools):
    case = tools.make_case(rows=300, vocabulary=2000).trainable()
    runs = []
    for _ in range(2):
        stats = lm_head_stats(case.hidden, case.head, case.targets, implementation="chunked", **case.settings)
        ones = torch.ones(2, 300)
        runs.append((stats.logprobs, stats.entropy, *gradients(case, stats.logprobs, stats.entropy, ones)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_what_is_wanted(tools):
    case = tools.make_case(plain=True)
    weight = case.head.weight.clone().requires_grad_()
    stats = lm_head_stats(case.hidden, weight, case.targets, implementation="chunked")
    stats.entropy.sum().backward()  # no gradient for the log-probabilities, none for the hidden states
    reference = case.to(torch.float64).trainable()
    (expected,) = torch.autograd.grad(tools.oracle(reference)["entropy"].sum(), reference.head.weight)
    assert tools.error(weight.grad, expected) < 1e-5


@pytest.mark.parametrize("way", ["auto", "chunked", "naive"])
def test_no_rows(way):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(300, 4, requires_grad=True)
    stats = lm_head_stats(
        hidden,
        weight,
        torch.zeros(0, dtype=torch.int64),
        rollout=(torch.zeros(0, 4), weight),
        outputs=("entropy", "kl_rollout"),
        implementation=way,
    )
    assert stats.logprobs.shape == stats.entropy.shape == stats.kl_rollout.shape == (0,)
    (stats.logprobs.sum() + stats.entropy.sum()).backward()
    assert (weight.grad == 0).all()
