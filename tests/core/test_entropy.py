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


def test_of_equal_values_the_ones_with_the_largest_draw_are_taken():
    # Above the tie 9 alone; two of the four 5s are left to take, the largest draws among them .9 and .7.
    values = torch.tensor([[5.0, 9.0, 5.0], [5.0, 1.0, 5.0]])
    draws = torch.tensor([[0.7, 0.0, 0.1], [0.2, 1.0, 0.9]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert top_share(values, mask, 0.5, draws).tolist() == [[True, True, False], [False, False, True]]
    assert top_share(values, mask, 1 / 6, draws).tolist() == [[False, True, False], [False, False, False]]
    assert top_share(values, mask, 0.1, draws).sum() == 0
    assert torch.equal(top_share(values, MASK, 1.0, draws), MASK)
    assert torch.equal(top_share(values, MASK, 0.6, 1 - draws), top_share(values, MASK, 0.6, 1 - draws) & MASK)
    assert top_share(values, MASK, 0.6, draws).sum() == 3
    g = torch.Generator().manual_seed(0)
    for share in (0.01, 0.2, 0.77):
        coarse, u = torch.randint(0, 4, (9, 30), generator=g).float(), torch.rand(9, 30, generator=g).double()
        inside = torch.rand(9, 30, generator=g) > 0.3
        pairs = sorted(zip(coarse[inside].tolist(), u[inside].tolist(), strict=True), reverse=True)
        chosen = top_share(coarse, inside, share, u)
        found = sorted(zip(coarse[chosen].tolist(), u[chosen].tolist(), strict=True), reverse=True)
        assert found == pairs[: int(share * int(inside.sum()))]


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
