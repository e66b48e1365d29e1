"""Liked or disliked exchanges with their lessons, grouped by picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from storage.learning_records import RatedExchange
from training.data.llava import Lesson
from training.data.near_duplicates import NearDuplicates


@dataclass(frozen=True, slots=True)
class Pair:
    """A rated exchange and its lesson.

    Attributes:
        rated: The exchange.
        lesson: Its lesson.
        rater: The rater it is attributed to (`training.data.influence`).
        rejected: The exchange with the rejected answer of the lesson.
    """

    rated: RatedExchange
    lesson: Lesson
    rater: int | None = None
    rejected: int | None = None

    @property
    def id(self) -> int:
        """The exchange's id."""
        return self.rated.exchange.id


def connected(pairs: Sequence[Pair], near: NearDuplicates) -> list[list[Pair]]:
    """Group the pairs about the same picture or near duplicates, transitively (union-find)."""
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
