"""The caches of the CPU engine: what is found again, what is copied, what goes first."""

from __future__ import annotations

import torch

from inference.engines.cpu.prefix_cache import GrowingCache, PrefixCache

LAYERS = 2
PICTURE = -7


def grow(kv: GrowingCache, values: list[int]) -> None:
    """Append positions whose keys and values are recognisable numbers."""
    states = torch.tensor(values, dtype=torch.float32)[None, None, :, None].expand(1, 3, len(values), 4)
    for layer in range(LAYERS):
        kv.update(states + layer, -states, layer)


def read(kv: GrowingCache) -> list[int]:
    """The numbers that the positions hold, the same in all layers, heads and features."""
    for layer, held in enumerate(kv.layers):
        assert torch.equal(held.keys - layer, kv.layers[0].keys)
        assert torch.equal(held.values, -kv.layers[0].keys)
    return [int(value) for value in kv.layers[0].keys[0, 0, :, 0]]


def remember(cache: PrefixCache, keys: list[int]) -> int:
    """Compute a conversation as an engine does; returns how much of it was known."""
    entry = cache.take(keys)
    known = entry.length
    assert read(entry.kv) == keys[:known] if known else True
    grow(entry.kv, keys[known:])
    entry.keys.extend(keys[known:])
    assert read(entry.kv) == keys
    cache.give(entry)
    return known


def test_growing_cache_is_what_was_put_in() -> None:
    """Position by position or many at once, and after a cut, the cache holds what a plain list would."""
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


def test_growing_cache_moves_its_content_seldom() -> None:
    """Token after token, the storage grows in steps, not every time, and wastes at most a third."""
    kv = GrowingCache()
    sizes = []
    for value in range(2000):
        grow(kv, [value])
        sizes.append(kv.nbytes)
    assert len(set(sizes)) < 20
    assert kv.nbytes < 4 / 3 * LAYERS * 2 * 2000 * 3 * 4 * 4


def test_a_chat_that_goes_on_finds_all_it_said() -> None:
    """The entry is handed over and grows; no second one is made."""
    cache = PrefixCache(10**6)
    assert remember(cache, [1, 2, PICTURE, PICTURE, 3, 4]) == 0
    assert remember(cache, [1, 2, PICTURE, PICTURE, 3, 4, 5, 6]) == 6
    assert remember(cache, [1, 2, PICTURE, PICTURE, 3, 4, 5, 6]) == 7, "one position must be run for its logits"
    assert len(cache) == 1


def test_an_answer_tried_again_cuts_only_the_answer() -> None:
    """The same prompt with another end takes the entry over: a short text is soon computed again."""
    cache = PrefixCache(10**6)
    remember(cache, [1, 2, PICTURE, PICTURE, 3, 4, 50, 51])
    assert remember(cache, [1, 2, PICTURE, PICTURE, 3, 4, 60]) == 6
    assert len(cache) == 1


def test_chats_that_share_their_beginning_do_not_take_each_other_s_picture() -> None:
    """What is shared is copied, and the other chat goes on from where it was."""
    cache = PrefixCache(10**6)
    system = list(range(100, 120))
    first = [*system, PICTURE, PICTURE, 3, 4]
    remember(cache, first)
    assert remember(cache, [*system, PICTURE - 1, PICTURE - 1, 3, 4]) == len(system)
    assert len(cache) == 2
    assert remember(cache, [*first, 5]) == len(first)


def test_another_picture_at_the_same_place_is_another_conversation() -> None:
    """Pictures take part in the match: nothing after a different one is known."""
    cache = PrefixCache(10**6)
    remember(cache, [1, 2, PICTURE, PICTURE, 3, 4])
    assert remember(cache, [1, 2, PICTURE - 1, PICTURE - 1, 3, 4]) == 0, "two positions are not worth a copy"


def test_an_entry_in_use_is_copied_and_left_alone() -> None:
    """Two answers at once from one beginning do not write into each other's cache."""
    cache = PrefixCache(10**6)
    start = list(range(20))
    remember(cache, start)
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


def test_the_limit_is_kept_and_the_oldest_goes_first() -> None:
    """Bytes stay below the limit once answers are done; the chats used last are those still known."""
    one = PrefixCache(10**9)
    remember(one, list(range(60)))
    cache = PrefixCache(3 * one.nbytes)
    for chat in range(10):
        remember(cache, list(range(100 * chat, 100 * chat + 60)))
        remember(cache, list(range(60)))
        assert cache.nbytes <= 3 * one.nbytes
    assert remember(cache, list(range(900, 960))) == 59
    assert remember(cache, list(range(60))) == 59
    assert remember(cache, list(range(100, 160))) == 0


def test_lent_entries_count_and_stay() -> None:
    """An answer under way pushes idle chats out, never itself."""
    cache = PrefixCache(0)
    entry = cache.take([1, 2, 3])
    grow(entry.kv, [1, 2, 3])
    entry.keys.extend([1, 2, 3])
    cache.trim()
    assert cache.nbytes == entry.kv.nbytes > 0
    cache.give(entry)
    assert (cache.nbytes, len(cache)) == (0, 0)


def test_a_discarded_entry_is_gone() -> None:
    """What failed half-way is never found again."""
    cache = PrefixCache(10**6)
    keys = list(range(30))
    entry = cache.take(keys)
    grow(entry.kv, keys)
    entry.keys.extend(keys)
    cache.discard(entry)
    assert remember(cache, keys) == 0
