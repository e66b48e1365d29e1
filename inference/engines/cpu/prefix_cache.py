"""KV cache of recent conversations, looked up by their longest common prefix.

A conversation is a list of 64-bit keys, one for each position. Positions with equal model input have
equal keys; the keys at the positions of a picture are negative. The cache is not thread-safe.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from inference.internvl2.growing_cache import GrowingCache

_MAX_ENTRIES: Final = 512
"""The maximum number of entries. Every lookup compares all of them, which takes a few microseconds per entry."""
_MIN_COPIED: Final = 8
"""The minimum length, in positions, of a common prefix that is copied; a shorter one is recomputed."""


class CacheEntry:
    """A cached conversation: `kv` holds its keys and values, and `keys` holds a lookup key for each position."""

    def __init__(self, keys: Sequence[int] = (), kv: GrowingCache | None = None) -> None:
        self.keys = array("q", keys)
        self.kv = GrowingCache() if kv is None else kv

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return len(self.keys)

    def shared(self, keys: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Return the length of the longest prefix that this entry shares with `keys`."""
        size = min(len(self.keys), len(keys))
        differs = np.frombuffer(self.keys, np.int64, size) != keys[:size] if size else np.empty(0, bool)
        first = int(differs.argmax()) if size else 0
        return first if size and differs[first] else size

    def has_picture_after(self, length: int) -> bool:
        """Return whether there are picture positions (negative keys) after the first `length` positions."""
        return len(self.keys) > length and min(self.keys[length:]) < 0

    def cut(self, length: int) -> None:
        """Drop all positions from `length` onwards."""
        del self.keys[length:]
        self.kv.crop(length)


class PrefixCache:
    """Cache of recent conversations, which evicts the least recently used entries first.

    A lent entry (one taken and not yet given back) counts towards the limit and is never evicted, but its
    prefixes can be copied.

    Args:
        limit: The maximum size of all entries together, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: OrderedDict[int, CacheEntry] = OrderedDict()
        self._lent: dict[int, CacheEntry] = {}
        self._idle_bytes = 0

    def take(self, keys: Sequence[int]) -> CacheEntry:
        """Lend an entry that holds the longest cached prefix of `keys`, never including the last key.

        If truncation loses little (for example, because a chat continues or an answer is regenerated), an idle
        entry is truncated to the prefix and lent. Otherwise (for example, because two chats share the
        system text but not the pictures), the prefix is copied into a new entry.
        """
        # At least one position has to be computed for the logits of the next token.
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
        elif best is not None and known >= _MIN_COPIED:
            best = CacheEntry(best.keys[:known], best.kv.copy(known))
        else:
            best = CacheEntry()
        self._lent[id(best)] = best
        return best

    def give(self, entry: CacheEntry) -> None:
        """Give a lent entry back to the cache as the most recently used entry."""
        del self._lent[id(entry)]
        if entry.length:
            self._idle[id(entry)] = entry
            self._idle_bytes += entry.kv.nbytes
        self.trim()

    def discard(self, entry: CacheEntry) -> None:
        """Drop a lent entry whose content is inconsistent."""
        del self._lent[id(entry)]

    def trim(self) -> None:
        """Evict entries until the cache is within its limit. Call this method after lent entries have grown."""
        while self._idle and (self.nbytes > self._limit or len(self._idle) > _MAX_ENTRIES):
            self._idle_bytes -= self._idle.popitem(last=False)[1].kv.nbytes

    @property
    def nbytes(self) -> int:
        """Total size of all entries in bytes, including lent ones."""
        return self._idle_bytes + sum(entry.kv.nbytes for entry in self._lent.values())

    def __len__(self) -> int:
        return len(self._idle) + len(self._lent)


def _cheap_to_cut(entry: CacheEntry, length: int) -> bool:
    """Return whether the positions after `length` are cheap to recompute: few, and without pictures."""
    return 2 * length >= entry.length and not entry.has_picture_after(length)
