"""Router drift of mixtures of experts: how often the engine sends a token to other experts than the trainer does.

Both models read the same sequences; the engine's copy in its own numerics and under its own weights. That is what the
engine would choose on reading the sequence, which may differ in rounding from what it chose while writing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from holdfast.train.forward import Sequences, micro_batches


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose experts, layer by layer: routers of transformers return the chosen indices last."""
    return [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]


@torch.no_grad()
def router_drift(policy: Any, engine: Any, sequences: Sequences, max_tokens: int) -> dict[str, float]:
    """Shares of (response token, layer) pairs and of response tokens for which the sets of experts differ.

    `router_drift` counts pairs with any other expert, `router_drift_tokens` tokens with any such layer; both count
    the positions from which response tokens are predicted. Empty for models without routers.
    """
    ours, theirs = routers(policy), routers(engine)
    if not ours or len(ours) != len(theirs):
        return {}
    differing = []
    for rows in micro_batches(sequences.lengths, torch.arange(len(sequences.response_mask)), max_tokens):
        part = sequences.select(rows)
        ids = part.input_ids.to(policy.device)
        row, offset = part.response_mask.nonzero(as_tuple=True)
        places = row * ids.shape[1] + part.prompt_lengths[row] + offset - 1
        first, second = (_chosen(model, found, ids)[:, places] for model, found in ((policy, ours), (engine, theirs)))
        differing.append(_other_sets(first, second))
    found = torch.cat(differing, dim=1)
    return {"router_drift": float(found.float().mean()), "router_drift_tokens": float(found.any(dim=0).float().mean())}


def _other_sets(first: Int[Tensor, "layers N K"], second: Int[Tensor, "layers N K"]) -> Bool[Tensor, "layers N"]:
    """Whether the experts differ as sets."""
    return (first.sort(dim=-1).values != second.sort(dim=-1).values).any(dim=-1)


def _chosen(model: Any, found: list[nn.Module], ids: Int[Tensor, "b L"]) -> Int[Tensor, "layers N K"]:
    """The experts of every position, [layers, b·L, K]."""
    with _listening(found) as heard:
        model.base_model(input_ids=ids, use_cache=False)
    return torch.stack([heard[index].reshape(ids.numel(), -1).cpu() for index in range(len(found))])


@contextmanager
def _listening(found: list[nn.Module]) -> Iterator[dict[int, Tensor]]:
    heard: dict[int, Tensor] = {}

    def hook(index: int) -> Any:
        return lambda module, inputs, output: heard.__setitem__(index, output[-1])

    handles = [module.register_forward_hook(hook(index)) for index, module in enumerate(found)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
