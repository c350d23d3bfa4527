"""Router drift of mixtures of experts: how often the engine sends a token to other experts than the trainer does.

Both models read the same sequences: the engine's copy right after it has written a piece, in its own numerics and
under the weights that wrote it; the trainer's at the step that trains on it. That is what the engine chooses on reading
the sequence, which may differ in rounding from what it chose while writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from holdfast.train.policy.forward import Sequences, micro_batches
from holdfast.train.sampling.data import pack
from holdfast.train.sampling.episodes import Episode


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose experts, layer by layer: routers of transformers return the chosen indices last."""
    return [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]


@torch.no_grad()
def chosen_experts(model: Any, sequences: Sequences, max_tokens: int) -> list[Int[Tensor, "_ layers K"]]:
    """Of each sequence, the experts at the positions from which its response tokens are predicted.

    Empty for models without routers.
    """
    found = routers(model)
    if not found:
        return []
    chosen: dict[int, Tensor] = {}
    for rows in micro_batches(sequences, torch.arange(len(sequences.response_mask)), max_tokens):
        part = sequences.select(rows)
        ids = part.input_ids.to(model.device)
        row, offset = part.response_mask.nonzero(as_tuple=True)
        places = row * ids.shape[1] + part.prompt_lengths[row] + offset - 1
        experts = _chosen(model, found, ids)[:, places].movedim(0, 1).to(torch.int16)
        chosen |= zip(rows.tolist(), experts.split(part.response_mask.sum(dim=1).tolist()), strict=True)
    return [chosen[row] for row in range(len(chosen))]


def with_experts(engine: Any, before: Sequence[Episode], written: Sequence[Episode], max_tokens: int) -> list[Episode]:
    """The written episodes with the experts that the engine's model chooses for the tokens sampled since `before`.

    To be called under the weights that wrote them; unchanged where the engine's model is no mixture or out of reach.
    """
    model = getattr(engine, "model", None)
    if not written or not isinstance(model, nn.Module) or not routers(model):
        return list(written)
    news = [
        (False,) * len(old.sampled) + new.sampled[len(old.sampled) :] for old, new in zip(before, written, strict=True)
    ]
    sequences = pack([e.prompt_ids for e in written], [e.token_ids for e in written], 0, news)
    chosen = chosen_experts(model, sequences, max_tokens)
    known = [
        found if old.experts is None else torch.cat([old.experts, found])
        for old, found in zip(before, chosen, strict=True)
    ]
    return [replace(new, experts=experts) for new, experts in zip(written, known, strict=True)]


def router_drift(
    policy: Any, sequences: Sequences, experts: Sequence[Int[Tensor, "_ layers K"]], max_tokens: int
) -> dict[str, float]:
    """Shares of (response token, layer) pairs and of response tokens for which the policy chooses other experts.

    `router_drift` counts pairs with any other expert, `router_drift_tokens` tokens with any such layer. Empty where the
    policy is no mixture or has other layers.
    """
    ours = chosen_experts(policy, sequences, max_tokens)
    if not ours or ours[0].shape[1:] != experts[0].shape[1:]:
        return {}
    found = _other_sets(torch.cat(ours), torch.cat(list(experts)))
    return {"router_drift": float(found.float().mean()), "router_drift_tokens": float(found.any(dim=1).float().mean())}


def _other_sets(first: Int[Tensor, "N layers K"], second: Int[Tensor, "N layers K"]) -> Bool[Tensor, "N layers"]:
    """Whether the experts differ as sets."""
    return (first.sort(dim=-1).values != second.sort(dim=-1).values).any(dim=-1)


def _chosen(model: Any, found: list[nn.Module], ids: Int[Tensor, "b L"]) -> Int[Tensor, "layers N K"]:
    """The experts of every position, [layers, b·L, K]."""
    # Compiled layers may not call hooks that came after their compilation.
    with torch.compiler.set_stance("force_eager"), _listening(found) as heard:
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
