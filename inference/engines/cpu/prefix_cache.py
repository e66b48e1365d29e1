"""What recent chats have been computed to: keys and values by token prefix.

Knows tensors, lengths and bytes. What a token means, where pictures stand and who is asking is the caller's:
a conversation comes in as a list of 64-bit keys, one for each position, equal where the model sees the same, below
0 for a picture's positions. Used from one thread.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_STEP: Final = 64
_GROWTH: Final = 1.25
_MOST_ENTRIES: Final = 512
"""So many chats at most, however small: the search compares with each, some microseconds apiece."""
_WORTH_COPYING: Final = 8


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [1, heads, length, size] views of storage that grows by a quarter.

    transformers' own layer copies everything for every new token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append the new positions; return all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        past = self.get_seq_length()
        length = past + key_states.shape[-2]
        if length > self.capacity:
            self._reserve(length, key_states, value_states)
        assert self._stores is not None
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, past:length] = states
        self.keys, self.values = (store[:, :, :length] for store in self._stores)
        return self.keys, self.values

    def crop(self, max_length: int) -> None:
        """Forget the positions from `max_length` on."""
        if self.get_seq_length() > max_length:
            self.keys, self.values = self.keys[:, :, :max_length], self.values[:, :, :max_length]

    @property
    def capacity(self) -> int:
        """Positions that the storage has room for."""
        return 0 if self._stores is None else int(self._stores[0].shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return 0 if self._stores is None else sum(store.nbytes for store in self._stores)

    def _reserve(self, length: int, *new: Tensor) -> None:
        past = self.get_seq_length()
        room = -(-max(length + _STEP, int(past * _GROWTH)) // _STEP) * _STEP
        stores = [states.new_empty((*states.shape[:2], room, states.shape[-1])) for states in new]
        if past:
            for store, states in zip(stores, (self.keys, self.values), strict=True):
                store[:, :, :past] = states
        self._stores = stores[0], stores[1]


class GrowingCache(Cache):  # type: ignore[misc]
    """A conversation's keys and values in all layers; what transformers' models take as `past_key_values`."""

    def __init__(self, layers: Iterable[GrowingLayer] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=GrowingLayer)
        else:
            super().__init__(layers=list(layers))

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' storage."""
        return sum(layer.nbytes for layer in self.layers)

    def copy(self, length: int) -> GrowingCache:
        """A cache of its own with the first `length` positions."""
        copied = GrowingCache()
        for index, layer in enumerate(self.layers):
            copied.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
        return copied


class Entry:
    """A conversation in the cache: one key for each position that `kv` holds."""

    def __init__(self, keys: Sequence[int] = (), kv: GrowingCache | None = None) -> None:
        self.keys = array("q", keys)
        self.kv = GrowingCache() if kv is None else kv

    @property
    def length(self) -> int:
        """Positions computed."""
        return len(self.keys)

    def shared(self, keys: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """How many keys at the beginning are the same."""
        size = min(len(self.keys), len(keys))
        differs = np.frombuffer(self.keys, np.int64, size) != keys[:size] if size else np.empty(0, bool)
        first = int(differs.argmax()) if size else 0
        return first if size and differs[first] else size

    def shows_picture_after(self, length: int) -> bool:
        """Whether a picture's positions (keys below 0) come after the first `length`."""
        return len(self.keys) > length and min(self.keys[length:]) < 0

    def cut(self, length: int) -> None:
        """Forget the positions from `length` on."""
        del self.keys[length:]
        self.kv.crop(length)


class PrefixCache:
    """Entries of recent conversations, at most `limit` bytes, the least recently used going first.

    An entry that is lent (taken and not yet given back) counts, can be copied from, and never goes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: OrderedDict[int, Entry] = OrderedDict()
        self._lent: dict[int, Entry] = {}
        self._idle_bytes = 0

    def take(self, keys: Sequence[int]) -> Entry:
        """Lend the entry that knows most of `keys`, cut to what it knows; the last key is never known.

        An idle entry is handed over when a chat goes on or an answer is tried again; when more would be lost (two
        chats with the same system text, each with its own picture), what is shared is copied.
        """
        # A model must run at least one position to say what comes next.
        wanted = np.array(keys[:-1], np.int64)
        best, known = None, 0
        for entry in (*self._lent.values(), *reversed(self._idle.values())):
            shared = entry.shared(wanted)
            if shared > known:
                best, known = entry, shared
        if best is not None and id(best) in self._idle and _cheap_to_cut(best, known):
            del self._idle[id(best)]
            self._idle_bytes -= best.kv.nbytes
            best.cut(known)
        elif best is not None and known >= _WORTH_COPYING:
            best = Entry(best.keys[:known], best.kv.copy(known))
        else:
            best = Entry()
        self._lent[id(best)] = best
        return best

    def give(self, entry: Entry) -> None:
        """Take a lent entry back, as the most recently used."""
        del self._lent[id(entry)]
        if entry.length:
            self._idle[id(entry)] = entry
            self._idle_bytes += entry.kv.nbytes
        self.trim()

    def discard(self, entry: Entry) -> None:
        """Forget a lent entry, whose content is not to be trusted."""
        del self._lent[id(entry)]

    def trim(self) -> None:
        """Let the least recently used go until the limit is kept. Call it after lent entries have grown."""
        while self._idle and (self.nbytes > self._limit or len(self._idle) > _MOST_ENTRIES):
            self._idle_bytes -= self._idle.popitem(last=False)[1].kv.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, lent ones included."""
        return self._idle_bytes + sum(entry.kv.nbytes for entry in self._lent.values())

    def __len__(self) -> int:
        return len(self._idle) + len(self._lent)


def _cheap_to_cut(entry: Entry, length: int) -> bool:
    """Whether what comes after `length` is little and only text: soon computed again if somebody misses it."""
    return 2 * length >= entry.length and not entry.shows_picture_after(length)
