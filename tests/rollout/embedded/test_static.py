"""Attention with rows innermost against one softmax per row in float64."""

import pytest
import torch

from holdfast.rollout.embedded.static import STRIDE, Shared, _attend

HEADS, REPEATED, WIDTH, PROMPTS, EACH = 2, 3, 4, 2, 5
ROWS = PROMPTS * EACH


@pytest.mark.parametrize(("prompt_scale", "own_scale"), [(1.0, 1.0), (300.0, 1.0), (1.0, 300.0)])
@pytest.mark.parametrize("shared", [True, False])
def test_attention_over_prompt_and_response(shared, prompt_scale, own_scale):
    """Scores of one part may exceed those of the other by hundreds, whose exponentials alone are infinite."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    queries = normal(HEADS, REPEATED, WIDTH, ROWS)
    keys = own_scale * normal(2, STRIDE, HEADS, WIDTH, ROWS)
    values, bias = normal(2, STRIDE, HEADS, WIDTH, ROWS), torch.zeros(2, STRIDE, ROWS)
    bias[1, 5:] = -torch.inf
    prefix = (prompt_scale * normal(PROMPTS * HEADS, WIDTH, 7), normal(PROMPTS * HEADS, 7, WIDTH))
    lengths = torch.tensor([7, 4])
    prompt = Shared.of([prefix], lengths, HEADS)
    found = _attend(
        queries, keys, values, bias, (prompt.keys[0], prompt.values[0], prompt.bias) if shared else None
    ).double()
    for row in range(ROWS):
        owner, length = row // EACH, int(lengths[row // EACH]) if shared else 0
        for head in range(HEADS):
            before = prefix[0][owner * HEADS + head].t()[:length], prefix[1][owner * HEADS + head][:length]
            own = (x[:, :, head, :, row].flatten(0, 1)[: STRIDE + 5] for x in (keys, values))
            k, v = (torch.cat(parts).double() for parts in zip(before, own, strict=True))
            for repeat in range(REPEATED):
                expected = (k @ queries[head, repeat, :, row].double()).softmax(dim=0) @ v
                assert torch.allclose(found[head, repeat, :, row], expected, atol=1e-4)
