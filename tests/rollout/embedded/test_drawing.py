"""Draws against the cumulated probabilities, and at the edges of what numbers can say."""

import pytest
import torch

from holdfast.rollout.embedded.drawing import draw


@pytest.mark.parametrize("vocabulary", [5, 256, 257, 1000, 3000])
def test_draws_follow_the_cumulated_probabilities(vocabulary):
    """Against one float64 sum over all tokens; half of them impossible, among them the first and the last."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(400, vocabulary, generator=generator)
    logits[:, 1::2] = -torch.inf
    logits[:, [0, -1]] = -torch.inf
    logits[:, 2] = 1.0
    logprobs = logits.log_softmax(dim=1)
    uniforms = torch.rand(400, generator=generator, dtype=torch.float64)
    uniforms[:3] = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    drawn = draw(logprobs, uniforms)
    cumulated = logprobs.double().exp().cumsum(dim=1)
    low, high = (torch.cat([torch.zeros(400, 1), cumulated], dim=1).gather(1, (drawn + k)[:, None]) for k in (0, 1))
    level = (uniforms * cumulated[:, -1])[:, None]
    assert bool((low - 1e-6 <= level).all()) and bool((level <= high + 1e-6).all())
    assert bool(torch.isfinite(logprobs.gather(1, drawn[:, None])).all())


def test_probabilities_are_cumulated_in_double_precision():
    logprobs = torch.randn(1000, 256, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1)
    cumulated = logprobs.exp().double().cumsum(dim=1)
    expected = torch.arange(1000) % 256
    ends = (cumulated / cumulated[:, -1:]).gather(1, expected[:, None]).squeeze(1)
    assert torch.equal(draw(logprobs, ends - 1e-11), expected)  # single precision is wrong by some 1e-8


@pytest.mark.parametrize("vocabulary", [7, 256, 300])
def test_the_largest_number_below_one_never_draws_what_is_impossible(vocabulary):
    """Where a threshold were rounded up to the whole, it would be the token after the last possible one."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(4000, vocabulary, generator=generator)
    logits[:, vocabulary // 2 :] = -torch.inf
    logits[:400] = -torch.inf
    logits[:400, vocabulary // 3] = 0.0  # the whole is 1 to the last bit
    for uniform in (1 - 2**-53, 0.0):
        drawn = draw(logits.log_softmax(dim=1), torch.full((4000,), uniform, dtype=torch.float64))
        assert bool(logits.gather(1, drawn[:, None]).isfinite().all())
        assert bool((drawn[:400] == vocabulary // 3).all())
