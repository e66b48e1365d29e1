"""A key/value cache for transformers models that allocates storage for further positions in advance."""

from __future__ import annotations

from typing import Any, Final

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
