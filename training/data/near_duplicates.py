"""Find pictures that are nearly the same by their perceptual hashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise


class NearDuplicates:
    """Compare pictures by 64-bit perceptual hashes. A picture without a hash matches only itself."""

    def __init__(self, phashes: Mapping[str, str], distance: int) -> None:
        """Take the hash of each picture in hex, and the most bits in which near duplicates differ."""
        self._hashes = {name: int(phash, 16) for name, phash in phashes.items() if phash}
        self._distance = distance

    def match(self, one: str, other: str) -> bool:
        """Return whether two pictures are the same or nearly the same."""
        if one == other:
            return True
        first, second = self._hashes.get(one), self._hashes.get(other)
        return first is not None and second is not None and (first ^ second).bit_count() <= self._distance

    def pairs(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield the pairs of near duplicates among some pictures.

        Two 64-bit hashes within `distance` bits agree in one of `distance + 1` bands of bits.
        """
        known = sorted(name for name in names if name in self._hashes)
        bands = self._distance + 1
        edges = [64 * band // bands for band in range(bands + 1)]
        for low, high in pairwise(edges):
            buckets: dict[int, list[str]] = defaultdict(list)
            for name in known:
                buckets[self._hashes[name] >> low & (1 << high - low) - 1].append(name)
            for bucket in buckets.values():
                yield from (pair for pair in combinations(bucket, 2) if self.match(*pair))
