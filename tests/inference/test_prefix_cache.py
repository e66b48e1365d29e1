"""The CPU engine's KV cache: lookup, copying and eviction."""

from __future__ import annotations

import torch

from inference.engines.cpu.prefix_cache import PrefixCache
from inference.internvl2.growing_cache import GrowingCache

LAYERS = 2
PICTURE = -7


def grow(kv: GrowingCache, values: list[int]) -> None:
    """Append positions whose keys and values encode the numbers in `values`."""
    states = torch.tensor(values, dtype=torch.float32)[None, None, :, None].expand(1, 3, len(values), 4)
    for layer in range(LAYERS):
        kv.update(states + layer, -states, layer)


def read(kv: GrowingCache) -> list[int]:
    """Return the number stored at each position, asserting that all layers agree."""
    for layer, held in enumerate(kv.layers):
        assert torch.equal(held.keys - layer, kv.layers[0].keys)
        assert torch.equal(held.values, -kv.layers[0].keys)
    return [int(value) for value in kv.layers[0].keys[0, 0, :, 0]]


def compute(cache: PrefixCache, keys: list[int]) -> int:
    """Process a conversation as the engine does, and return how many of its positions were cached."""
    entry = cache.take(keys)
    known = entry.length
    assert read(entry.kv) == keys[:known] if known else True
    grow(entry.kv, keys[known:])
    entry.keys.extend(keys[known:])
    assert read(entry.kv) == keys
    cache.give(entry)
    return known


def test_growing_cache_holds_what_was_appended() -> None:
    """A growing cache matches a plain list after single appends, bulk appends and crops."""
    kv, held = GrowingCache(), list[int]()
    for step, size in enumerate([5, 1, 1, 200, 1, 64, 300]):
        new = list(range(1000 * step, 1000 * step + size))
        grow(kv, new)
        held += new
        assert read(kv) == held
        assert kv.get_seq_length() == len(held)
        kept = len(held) - size // 2
        kv.crop(kept)
        del held[kept:]
    assert read(kv.copy(3)) == held[:3]


def test_growing_cache_rarely_reallocates() -> None:
    """A growing cache's storage grows in large steps and exceeds the needed size by at most a third."""
    kv = GrowingCache()
    sizes = []
    for value in range(2000):
        grow(kv, [value])
        sizes.append(kv.nbytes)
    assert len(set(sizes)) < 20
    assert kv.nbytes < 4 / 3 * LAYERS * 2 * 2000 * 3 * 4 * 4


def test_a_continued_chat_finds_all_its_positions() -> None:
    """A continued chat finds all its positions in the cache, and its entry grows instead of being duplicated."""
    cache = PrefixCache(10**6)
    assert compute(cache, [1, 2, PICTURE, PICTURE, 3, 4]) == 0
    assert compute(cache, [1, 2, PICTURE, PICTURE, 3, 4, 5, 6]) == 6
    assert compute(cache, [1, 2, PICTURE, PICTURE, 3, 4, 5, 6]) == 7, "one position must be computed for its logits"
    assert len(cache) == 1


def test_a_regenerated_answer_cuts_only_the_answer() -> None:
    """A regenerated answer reuses the prompt's cache entry; only the short answer is computed again."""
    cache = PrefixCache(10**6)
    compute(cache, [1, 2, PICTURE, PICTURE, 3, 4, 50, 51])
    assert compute(cache, [1, 2, PICTURE, PICTURE, 3, 4, 60]) == 6
    assert len(cache) == 1


def test_chats_with_a_common_prefix_keep_their_own_pictures() -> None:
    """A new chat copies the prefix that it shares with another chat, whose own entry is kept."""
    cache = PrefixCache(10**6)
    system = list(range(100, 120))
    first = [*system, PICTURE, PICTURE, 3, 4]
    compute(cache, first)
    assert compute(cache, [*system, PICTURE - 1, PICTURE - 1, 3, 4]) == len(system)
    assert len(cache) == 2
    assert compute(cache, [*first, 5]) == len(first)


def test_another_picture_at_the_same_position_is_another_conversation() -> None:
    """Pictures are part of the prefix comparison, so no position after a different picture matches."""
    cache = PrefixCache(10**6)
    compute(cache, [1, 2, PICTURE, PICTURE, 3, 4])
    assert compute(cache, [1, 2, PICTURE - 1, PICTURE - 1, 3, 4]) == 0, "two positions are too few to copy"


def test_a_lent_entry_is_copied() -> None:
    """Two concurrent answers with a common prefix have separate entries."""
    cache = PrefixCache(10**6)
    start = list(range(20))
    compute(cache, start)
    one, other = cache.take([*start, 1]), cache.take([*start, 2])
    assert (one.length, other.length) == (20, 20)
    for entry, value in ((one, 1), (other, 2)):
        grow(entry.kv, [value])
        entry.keys.append(value)
    assert read(one.kv) == [*start, 1]
    assert read(other.kv) == [*start, 2]
    cache.give(one)
    cache.give(other)
    assert len(cache) == 2


def test_the_limit_is_kept_and_the_oldest_is_evicted_first() -> None:
    """The cache stays within its limit after each answer by evicting the least recently used chats."""
    one = PrefixCache(10**9)
    compute(one, list(range(60)))
    cache = PrefixCache(3 * one.nbytes)
    for chat in range(10):
        compute(cache, list(range(100 * chat, 100 * chat + 60)))
        compute(cache, list(range(60)))
        assert cache.nbytes <= 3 * one.nbytes
    assert compute(cache, list(range(900, 960))) == 59
    assert compute(cache, list(range(60))) == 59
    assert compute(cache, list(range(100, 160))) == 0


def test_lent_entries_count_and_are_not_evicted() -> None:
    """An unfinished answer's entry counts towards the limit and can displace idle chats but is never evicted."""
    cache = PrefixCache(0)
    entry = cache.take([1, 2, 3])
    grow(entry.kv, [1, 2, 3])
    entry.keys.extend([1, 2, 3])
    cache.trim()
    assert cache.nbytes == entry.kv.nbytes > 0
    cache.give(entry)
    assert (cache.nbytes, len(cache)) == (0, 0)


def test_a_discarded_entry_is_not_found_again() -> None:
    """The cached positions of a failed generation are discarded and not reused."""
    cache = PrefixCache(10**6)
    keys = list(range(30))
    entry = cache.take(keys)
    grow(entry.kv, keys)
    entry.keys.extend(keys)
    cache.discard(entry)
    assert compute(cache, keys) == 0
