"""A key-value cache that writes in place: transformers' own one copies everything for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A growing cache layer that doubles its room when it is used up, so that one more token is one small write."""

    is_compileable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        stores = self._stores
        if stores is None or end > stores[0].shape[-2]:
            grown = self._grown(key_states, used), self._grown(value_states, used)
            if stores is not None:
                for new, old in zip(grown, stores, strict=True):
                    new[..., :used, :] = old[..., :used, :]
            stores = self._stores = grown
        stores[0][..., used:end, :] = key_states
        stores[1][..., used:end, :] = value_states
        self.keys, self.values = stores[0][..., :end, :], stores[1][..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep (or repeat) these rows."""
        used = self.get_seq_length()
        if used and self._stores is not None:
            self._stores = self._stores[0][indices], self._stores[1][indices]
            self.keys, self.values = self._stores[0][..., :used, :], self._stores[1][..., :used, :]

    def _grown(self, states: Tensor, used: int) -> Tensor:
        rows, heads, new, width = states.shape
        return torch.empty((rows, heads, 2 * (used + new), width), dtype=states.dtype, device=states.device)


def roomy_cache(model: Any) -> Cache:
    """An empty cache for `model`.

    Models whose layers are not plain full attention get transformers' own dynamic cache.
    """
    from transformers import DynamicCache

    plain = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in plain.layers):
        return plain
    return Cache(layers=[RoomyLayer() for _ in plain.layers])
