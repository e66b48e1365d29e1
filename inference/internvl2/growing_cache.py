"""A key/value cache for transformers models that allocates storage for further positions in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_ALLOCATION: Final = 64
"""Storage grows by multiples of this number of positions."""
_GROWTH: Final = 1.25


class GrowingLayer(DynamicLayer):
    """One layer's keys and values: [B, heads, length, size] views of storage that grows by about 25% at a time.

    The layer class in transformers, by contrast, copies all keys and values for every new token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append new positions, and return the keys and values of all positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        past = self.get_seq_length()
        length = past + key_states.shape[-2]
        if self._stores is None or length > self._stores[0].shape[-2]:
            self._reserve(length, key_states, value_states)
        assert self._stores is not None
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, past:length] = states
        self.keys, self.values = (store[:, :, :length] for store in self._stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Replace the batch's rows with those at `indices`; an index may occur several times."""
        super().batch_select_indices(indices)
        self._stores = None

    def crop(self, max_length: int) -> None:
        """Drop all positions from `max_length` onwards."""
        if self.get_seq_length() > max_length:
            self.keys, self.values = self.keys[:, :, :max_length], self.values[:, :, :max_length]

    @property
    def nbytes(self) -> int:
        """Size of the storage in bytes."""
        return 0 if self._stores is None else sum(store.nbytes for store in self._stores)

    def _reserve(self, length: int, *new: Tensor) -> None:
        past = self.get_seq_length()
        room = -(-max(length + _ALLOCATION, int(past * _GROWTH)) // _ALLOCATION) * _ALLOCATION
        stores = [states.new_empty((*states.shape[:2], room, states.shape[-1])) for states in new]
        if past:
            for store, states in zip(stores, (self.keys, self.values), strict=True):
                store[:, :, :past] = states
        self._stores = stores[0], stores[1]


class GrowingCache(Cache):
    """The keys and values of a batch of conversations in all layers, for `past_key_values` of a transformers model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    @property
    def nbytes(self) -> int:
        """Size of all layers' storage in bytes."""
        return sum(layer.nbytes for layer in self.layers)

    def copy(self, length: int) -> GrowingCache:
        """Return an independent copy of the first `length` positions."""
        copied = GrowingCache()
        for index, layer in enumerate(self.layers):
            copied.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
        return copied


class JointCache(Cache):
    """The caches of several conversations as one batch, for a model call with one new position in each of them.

    The model reads keys and values that are padded on the left, and the new ones are added to the caches themselves.

    Attributes:
        lengths: The number of positions in each cache before the call, [B].
        mask: The attention mask of the call, [B, longest length + 1], which is False for padding.
    """

    def __init__(self, caches: Sequence[GrowingCache]) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)
        self._caches = caches
        lengths = [int(each.get_seq_length()) for each in caches]
        self._longest = max(lengths)
        self.lengths = torch.tensor(lengths)
        self.mask = torch.arange(self._longest + 1) >= self._longest - self.lengths[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the new position of each row, [B, heads, 1, size], and return all positions, padded on the left."""
        if len(self._caches) == 1:
            return self._caches[0].update(key_states, value_states, layer_idx)
        shape = (*key_states.shape[:2], self._longest + 1, key_states.shape[-1])
        keys, values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        for row, each in enumerate(self._caches):
            own = each.update(key_states[row : row + 1], value_states[row : row + 1], layer_idx)
            for padded, part in zip((keys, values), own, strict=True):
                padded[row, :, -part.shape[2] :] = part[0]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of positions in the longest cache before the call."""
        return self._longest

    def get_mask_sizes(self, cache_position: Tensor, layer_idx: int) -> tuple[int, int]:
        """Return the number of positions that the call reads, and their offset, for transformers' masks."""
        return self._longest + 1, 0
