"""Routing replay: the trainer's routers are made to choose the experts that the engine chose for the same tokens.

A router computes logits g over E experts and mixes the K likeliest. Two programs that round differently, or that are an
update apart, choose other experts for a few tokens, and each such token's output jumps. With recorded experts S the
router here mixes exactly these, with its own weights p_e / Σ_{j in S} p_j, p = softmax(g) (without the sum where the
model does not normalise), so that gates and router are trained as before. (Ma et al. 2025, "Stabilizing MoE
Reinforcement Learning by Aligning Training and Inference Routers", arXiv 2510.11370.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from holdfast.errors import ConfigError, DataError
from holdfast.train.policy.unpadded import Layout, Packed

REPLAYED = ("Qwen3MoeTopKRouter",)
"""Routers of transformers whose forward pass is known here: softmax over all experts, then the K likeliest."""
OWN = -1
"""In place of an expert: the router chooses by itself."""


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose experts, layer by layer: routers of transformers return the chosen indices last."""
    return [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]


class Replay:
    """The routers of a mixture, which choose recorded experts while `choosing` is in force, and their own otherwise."""

    def __init__(self, model: nn.Module) -> None:
        """Listen to the model's routers; copies that are made of it afterwards are steered along with it.

        Raises:
            ConfigError: it is no mixture, or one whose routers are not known here.
        """
        found = routers(model)
        if not found:
            raise ConfigError(
                f"engine.replay_experts = true: {type(model).__name__} has no routers that choose experts; leave it out"
            )
        if unknown := sorted({type(router).__name__ for router in found} - {*REPLAYED}):
            raise ConfigError(
                f"engine.replay_experts = true: how {', '.join(unknown)} weighs its experts is not known here, only "
                f"{', '.join(REPLAYED)} is; leave it out"
            )
        self.layers, self.experts, self.width = len(found), int(found[0].num_experts), int(found[0].top_k)  # pyright: ignore[reportArgumentType]
        self._ids: Int[Tensor, "layers N K"] | None = None
        for index, router in enumerate(found):
            router.register_forward_hook(self._hook(index))

    @contextmanager
    def choosing(self, ids: Int[Tensor, "layers N K"] | None) -> Iterator[None]:
        """The experts of every token of the next passes; a token with -1 gets those that its router chooses."""
        before, self._ids = self._ids, ids
        try:
            yield
        finally:
            self._ids = before

    def recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a pass and of its repetition within the backward pass (`context_fn` of torch's checkpoint)."""
        return nullcontext(), self.choosing(self._ids)

    def laid_out(
        self, experts: Sequence[Int[Tensor, "_ layers K"]], where: Int[Tensor, "b L"] | Layout | Packed
    ) -> Int[Tensor, "layers N K"]:
        """The experts of sequences, as the model is going to read their tokens; -1 where none are recorded.

        Raises:
            DataError: experts of another model.
        """
        for one in experts:
            if one.shape[1:] != (self.layers, self.width) or (one.numel() and int(one.max()) >= self.experts):
                highest = int(one.max()) if one.numel() else 0
                raise DataError(
                    f"engine.replay_experts: the engine recorded {tuple(one.shape[1:])} experts (layers, K) a token, "
                    f"up to number {highest}, and the trainer's model chooses {(self.layers, self.width)} of "
                    f"{self.experts}: give both the same model folder"
                )
        if isinstance(where, Layout | Packed):
            count, places = len(where.input_ids), where.tokens
        else:
            count, places = where.numel(), torch.arange(where.numel(), device=where.device).view(where.shape)
        ids = torch.full((count, self.layers, self.width), OWN, device=places.device)
        for row, one in enumerate(experts):
            ids[places[row, : len(one)]] = one.to(places.device, torch.long)
        return ids.movedim(1, 0)

    def _hook(self, index: int) -> Any:
        def choose(router: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
            if self._ids is None:
                return None
            logits, _, own = output
            recorded = self._ids[index]
            chosen = torch.where(recorded == OWN, own, recorded)
            weights = torch.softmax(logits, dim=-1, dtype=torch.float).gather(1, chosen)
            if router.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            return logits, weights.to(logits.dtype), chosen

        return choose
