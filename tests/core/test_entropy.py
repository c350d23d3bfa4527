"""Covariance, selection by rank and the counter-based draw."""

import torch

from holdfast.core.entropy import token_covariance, token_uniforms, top_share

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_covariance_by_hand():
    # log π: 1, 2, ·, 3, 4, 5 (mean 3); A: 1, 1, ·, −1, −1, 0 (mean 0)
    logprobs = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1.0, 99.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)
    assert token_covariance(logprobs, advantages, MASK).tolist() == [[-2.0, -1.0, 0.0], [0.0, -1.0, 0.0]]


def test_covariance_averages_to_the_covariance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 50, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 50, generator=g) > 0.4
    expected = torch.cov(torch.stack([x[mask], y[mask]]), correction=0)[0, 1]
    torch.testing.assert_close(token_covariance(x, y, mask).sum() / mask.sum(), expected)


def test_top_share_takes_the_floor_and_only_inside_the_mask():
    values = torch.tensor([[5.0, 1.0, 9.0], [2.0, 4.0, 3.0]])
    assert top_share(values, MASK, 0.4).tolist() == [[True, False, False], [False, True, False]]
    assert top_share(values, MASK, 0.39).sum() == 1
    assert top_share(values, MASK, 0.19).sum() == 0
    assert torch.equal(top_share(values, MASK, 1.0), MASK)
    # .29 · 100 is 28.999999999999996 in floating point: a bare floor would lose one.
    assert top_share(torch.arange(100.0)[None], torch.ones(1, 100, dtype=torch.bool), 0.29).sum() == 29


def test_uniforms_are_uniform_and_independent():
    u = token_uniforms(3, torch.arange(500), torch.ones(500, 100, dtype=torch.bool))
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    histogram = torch.histc(u, 20, 0, 1) / u.numel()
    assert (histogram - 0.05).abs().max() < 0.005
    for a, b in ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.02
    for other in (token_uniforms(4, torch.arange(500), u > -1), token_uniforms(3, torch.arange(500), u > -1, step=1)):
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1]) < 0.02


def test_uniforms_belong_to_the_sequence_and_the_place_in_its_response():
    mask = torch.ones(3, 5, dtype=torch.bool)
    ids = torch.tensor([10, 20, 30])
    u = token_uniforms(0, ids, mask)
    assert torch.equal(token_uniforms(0, ids[[2, 0]], mask[:2]), u[[2, 0]])
    holed = torch.tensor([[False, True, False, True, True]])
    assert torch.equal(token_uniforms(0, ids[:1], holed)[holed], u[0, :3])
