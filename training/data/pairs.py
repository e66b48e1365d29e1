"""Liked or disliked exchanges with their lessons, grouped by picture and kept apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from storage.learning_records import RatedExchange
from training.data.llava import Lesson
from training.data.near_duplicates import NearDuplicates


@dataclass(frozen=True, slots=True)
class Pair:
    """A rated exchange and its lesson.

    Attributes:
        rated: The exchange.
        lesson: Its lesson.
        rater: The one for whom it counts (`training.data.influence`).
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


def separate(train: Sequence[Pair], judged: Sequence[Pair], near: NearDuplicates) -> tuple[list[Pair], list[Pair]]:
    """Return both sides without the parts of conversations that show a picture of the other side.

    The subject of a pair stays. A near duplicate of a picture is on its side.
    """
    names = _pictures((*train, *judged))
    side = {
        name: number for number, group in enumerate((train, judged)) for each in group for name in each.lesson.subject
    }
    for one, other in near.pairs(names):
        for known, unknown in ((one, other), (other, one)):
            if known in side:
                side.setdefault(unknown, side[known])
    # A picture that is in a conversation to train on, and that no pair is about, is on the training side.
    for name in _pictures(train):
        side.setdefault(name, 0)
    return _trim(train, side, 0), _trim(judged, side, 1)


def _trim(pairs: Iterable[Pair], side: Mapping[str, int], own: int) -> list[Pair]:
    """Drop the conversation before a pair's subject if it shows a picture of the other side."""
    return [
        replace(each, lesson=each.lesson.about_subject())
        if any(side.get(name, own) != own for name in each.lesson.pictures)
        else each
        for each in pairs
    ]


def _pictures(pairs: Iterable[Pair]) -> set[str]:
    return {name for each in pairs for name in each.lesson.pictures}
