"""A key-value cache that writes in place: transformers' own one copies everything for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

GIB = 1 << 30


def block_rows(rows: int, row_bytes: int, cache_gib: float) -> int:
    """Rows that are decoded at a time: as many as have room, in blocks of about the same size; 0 if not one has."""
    most = int(cache_gib * GIB) // row_bytes if row_bytes else rows
    return -(-rows // -(-rows // most)) if most else 0


class RoomyLayer(DynamicLayer):
    """A growing cache layer that doubles its room when it is used up, so that one more token is one small write.

    `most` is the number of tokens that it will ever hold: the room never exceeds it. Layers grow one after the other,
    so that no more than one of them is there twice.
    """

    is_compileable = False

    def __init__(self, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = most
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        stores = self._stores
        if stores is None or end > stores[0].shape[-2]:
            stores = self._stores = self._grown(key_states, used, 0), self._grown(value_states, used, 1)
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

    def _grown(self, states: Tensor, used: int, which: int) -> Tensor:
        rows, heads, new, width = states.shape
        room = max(used + new, min(self.most, 2 * (used + new)))
        grown = torch.empty((rows, heads, room, width), dtype=states.dtype, device=states.device)
        if self._stores is not None:
            grown[..., :used, :] = self._stores[which][..., :used, :]
        return grown


def roomy_cache(model: Any, most: int) -> Cache:
    """An empty cache for `model` and at most this many tokens a row.

    Models whose layers are not plain full attention get transformers' own dynamic cache.
    """
    from transformers import DynamicCache

    plain = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in plain.layers):
        return plain
    return Cache(layers=[RoomyLayer(most) for _ in plain.layers])
