"""Rated exchanges paired with the training examples made from them, and functions that find similar pairs."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from storage.learning_records import Preference, RatedExchange
from training.data.llava import Lesson, Rejected, row_name


@dataclass(frozen=True, slots=True)
class Pair:
    """A rated exchange and its lesson.

    Attributes:
        rated: The exchange.
        lesson: The lesson made from the exchange.
        rater: The rater that the exchange counts for (`training.data.rater_limits`).
        rejected: The ID of the exchange that has the lesson's rejected answer; None if there is no such
            answer.
    """

    rated: RatedExchange
    lesson: Lesson
    rater: int | None = None
    rejected: int | None = None

    @property
    def id(self) -> int:
        """The exchange's ID."""
        return self.rated.exchange.id


class NearDuplicates:
    """A finder of nearly identical pictures, based on 64-bit perceptual hashes.

    A picture without a hash matches only itself.
    """

    def __init__(self, phashes: Mapping[str, str], distance: int) -> None:
        """Parse the perceptual hashes.

        Args:
            phashes: The hash of each picture in hex, by the picture's name.
            distance: The maximum number of bits in which the hashes of near duplicates may differ.
        """
        self._hashes = {name: int(phash, 16) for name, phash in phashes.items() if phash}
        self._distance = distance

    def match(self, one: str, other: str) -> bool:
        """Return whether two pictures are the same or nearly the same."""
        if one == other:
            return True
        first, second = self._hashes.get(one), self._hashes.get(other)
        return first is not None and second is not None and (first ^ second).bit_count() <= self._distance

    def pairs(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield all pairs of near duplicates among the pictures `names`.

        Two 64-bit hashes that differ in at most `distance` bits agree in at least one of `distance + 1` bands of
        bits, so only pictures with a band in common are compared.
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


def connected(pairs: Sequence[Pair], near: NearDuplicates) -> list[list[Pair]]:
    """Group pairs about the same picture or about near duplicates, transitively (union-find)."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    keys = [each.lesson.subject or (each.lesson.name,) for each in pairs]
    for names in keys:
        for name in names:
            parent[find(name)] = find(names[0])
    subjects = {name for each in pairs for name in each.lesson.subject}
    for one, other in near.pairs(subjects):
        parent[find(one)] = find(other)
    groups: dict[str, list[Pair]] = defaultdict(list)
    for names, each in zip(keys, pairs, strict=True):
        groups[find(names[0])].append(each)
    return list(groups.values())


def without_duplicates(pairs: Sequence[Pair], near: NearDuplicates) -> list[Pair]:
    """Keep one pair from each set with the same texts about the same or nearly the same pictures.

    The texts are the question and the answer. The pair with the best rating is kept and, among equals, the
    oldest.
    """
    kept: dict[tuple[str, str, int], list[Pair]] = defaultdict(list)
    for each in sorted(pairs, key=lambda pair: (pair.rated.downs - pair.rated.ups, pair.id)):
        exchange, subject = each.rated.exchange, each.lesson.subject
        same_texts = kept[normalized_text(exchange.question), normalized_text(exchange.answer), len(subject)]
        if not any(all(map(near.match, subject, other.lesson.subject)) for other in same_texts):
            same_texts.append(each)
    ids = {pair.id for group in kept.values() for pair in group}
    return [each for each in pairs if each.id in ids]


def normalized_text(text: str) -> str:
    """Return a text normalized for comparison, ignoring case, letter styles (Unicode NFKC) and extra spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def with_rejected(pairs: Iterable[Pair], preferences: Iterable[Preference]) -> list[Pair]:
    """Return the pairs, adding the rejected answers that DPO learns from.

    If a pair has several rejected answers, it gets the newest one.
    """
    newest = {each.chosen.exchange.id: each for each in preferences}
    found = []
    for pair in pairs:
        if preference := newest.get(pair.id):
            number = preference.rejected_exchange
            lesson = replace(pair.lesson, rejected=Rejected(row_name(number), preference.rejected))
            pair = replace(pair, lesson=lesson, rejected=number)
        found.append(pair)
    return found
