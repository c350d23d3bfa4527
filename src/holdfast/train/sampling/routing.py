"""Experts of mixtures: which the engine chose, and how often the trainer sends a token to others.

Both models read the same sequences: the engine's copy right after it has written a piece, in its own numerics and
under the weights that wrote it; the trainer's at the step that trains on it. That is what the engine chooses on reading
the sequence, which may differ in rounding from what it chose while writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holdfast.core.divergences import abs_log, k3
from holdfast.train.policy.forward import Sequences, micro_batches
from holdfast.train.policy.replay import routers
from holdfast.train.sampling.data import pack
from holdfast.train.sampling.episodes import Episode


@torch.no_grad()
def chosen_experts(model: Any, sequences: Sequences, max_tokens: int) -> list[Int[Tensor, "_ layers K"]]:
    """Of each sequence, the experts of all its tokens but the last, from which nothing is predicted.

    Empty for models without routers.
    """
    found = routers(model)
    if not found:
        return []
    chosen: dict[int, Tensor] = {}
    for rows in micro_batches(sequences, torch.arange(len(sequences.response_mask)), max_tokens):
        part = sequences.select(rows)
        ids = part.input_ids.to(model.device)
        experts = _chosen(model, found, ids).movedim(0, 1).to(torch.int16).unflatten(0, ids.shape)
        chosen |= {
            row: own[: length - 1]
            for row, own, length in zip(rows.tolist(), experts, part.lengths.tolist(), strict=True)
        }
    return [chosen[row] for row in range(len(chosen))]


def with_experts(engine: Any, before: Sequence[Episode], written: Sequence[Episode], max_tokens: int) -> list[Episode]:
    """The written episodes with the experts that the engine's model chooses for what it has read since `before`.

    To be called under the weights that wrote them; unchanged where the engine's model is no mixture or out of reach.
    What was read under older weights keeps their experts.
    """
    model = getattr(engine, "model", None)
    if not written or not isinstance(model, nn.Module) or not routers(model):
        return list(written)
    sequences = pack([e.prompt_ids for e in written], [e.token_ids for e in written], 0)
    chosen = chosen_experts(model, sequences, max_tokens)
    known = [
        found if old.experts is None else torch.cat([old.experts, found[len(old.experts) :]])
        for old, found in zip(before, chosen, strict=True)
    ]
    return [replace(new, experts=experts) for new, experts in zip(written, known, strict=True)]


def at_responses(experts: Sequence[Int[Tensor, "_ layers K"]], sequences: Sequences) -> list[Int[Tensor, "_ layers K"]]:
    """Of the experts of whole sequences, those at the positions from which their response tokens are predicted."""
    mask, first = sequences.response_mask, (sequences.prompt_lengths - 1).tolist()
    return [one[start + mask[row].nonzero()[:, 0]] for row, (one, start) in enumerate(zip(experts, first, strict=True))]


@dataclass(frozen=True)
class Rerouted:
    """Where the trainer's routers chose other experts than the engine's.

    `changed` counts, at each response token, the (layer, slot) choices of the engine that the trainer did not make.
    `metrics`: `router_drift`, the share of (response token, layer) pairs with another set, and `router_drift_tokens`,
    the share of response tokens with any such layer.
    """

    changed: Int[Tensor, "B T"]
    metrics: Mapping[str, float]


def rerouted(
    policy: Any, sequences: Sequences, experts: Sequence[Int[Tensor, "_ layers K"]], max_tokens: int
) -> Rerouted | None:
    """The policy's own choices beside the engine's; None where it is no mixture or has other layers."""
    ours = chosen_experts(policy, sequences, max_tokens)
    if not ours or ours[0].shape[1:] != experts[0].shape[1:]:
        return None
    own, theirs = (torch.cat(at_responses(chosen, sequences)) for chosen in (ours, experts))
    missing = (theirs.unsqueeze(-1) != own.unsqueeze(-2)).all(dim=-1).sum(dim=-1)
    mask = sequences.response_mask
    metrics = {
        "router_drift": float((missing > 0).float().mean()),
        "router_drift_tokens": float((missing > 0).any(dim=1).float().mean()),
    }
    return Rerouted(torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, missing.sum(dim=1)), metrics)


def drift_without_replay(
    own: Float[Tensor, "B T"], rollout: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, float]:
    """The drift if every token went to the trainer's own experts; `own` are its log-probabilities then."""
    log_ratio = (own - rollout)[mask]
    return {
        "own_experts_abs_log_ratio_mean": float(abs_log(log_ratio).value.mean()),
        "own_experts_rollout_k3_mean": float(k3(log_ratio).value.mean()),
    }


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
