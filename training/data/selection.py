"""Which exchanges teach, and which of them are kept apart to judge by.

Pure functions over rows of the ledger. Knows votes, duplicates and the split by picture; leaves reading rows to the
ledger and writing files to `llava`.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

from storage.records import RatedExchange
from training.data.llava import Lesson, lesson
from training.job import TrainingError

TRAIN = "train"
HELD_OUT = "held_out"
CUT_OFF = (
    "{cut} of {liked} liked answers were cut off at the longest answer and teach nothing: raise chat.max_new_tokens"
)


class TooFewPairs(TrainingError):
    """There is not enough to train on. The text has the numbers and says what to do."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rated exchanges. `raters` is how many people liked the selected ones; in a `Selection`, those
    to train on. `cut` of the unfinished ones were cut off at the longest answer.
    """

    rated: int = 0
    disliked: int = 0
    unfinished: int = 0
    too_long: int = 0
    duplicates: int = 0
    selected: int = 0
    raters: int = 0
    votes: int = 0
    cut: int = 0

    def __str__(self) -> str:
        told = {name: value for name, value in asdict(self).items() if name not in ("votes", "cut")}
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())

    @property
    def limit(self) -> str:
        """Why so few answers teach, where the longest answer is the cause, with the next step; else empty."""
        return cut_off(self.cut, self.rated - self.disliked)


@dataclass(frozen=True, slots=True)
class Pair:
    """A liked exchange and what it teaches."""

    rated: RatedExchange
    lesson: Lesson

    @property
    def id(self) -> int:
        """The exchange's id."""
        return self.rated.exchange.id


@dataclass(frozen=True, slots=True)
class Selection:
    """The frozen choice of one run: no picture is in both `train` and `held_out`."""

    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    counts: Counts

    @property
    def corrections(self) -> int:
        """How many of the pairs to train on are better answers that people showed."""
        return sum(each.rated.demonstrated for each in self.train)

    def rows(self) -> list[tuple[int, str]]:
        """Exchange ids with the name of their side, as the ledger freezes them."""
        return [(each.id, TRAIN) for each in self.train] + [(each.id, HELD_OUT) for each in self.held_out]


def cut_off(cut: int, liked: int) -> str:
    """Say that the longest answer is the limit, where more than a third of the liked ones were cut off at it."""
    return CUT_OFF.format(cut=cut, liked=liked) if 3 * cut > liked else ""


def liked(rated: Iterable[RatedExchange], threshold: int) -> list[RatedExchange]:
    """The exchanges whose thumbs up less thumbs down exceed the threshold, and those with a better answer."""
    return [each for each in rated if each.demonstrated or each.ups - each.downs > threshold]


def finished(rated: Iterable[RatedExchange]) -> list[RatedExchange]:
    """Without answers that are empty or were cut short: they would teach to stop in mid-sentence."""
    return [each for each in rated if each.exchange.finish == "stop" and each.exchange.answer.strip()]


def short_enough(rated: Iterable[RatedExchange], max_length: int | None) -> list[RatedExchange]:
    """Without those whose tokens, as the engine counted them, exceed what the trainer takes; None: it says itself."""
    most = math.inf if max_length is None else max_length
    return [each for each in rated if each.exchange.prompt_tokens + each.exchange.completion_tokens <= most]


def without_duplicates(pairs: Sequence[Pair], phashes: Mapping[str, str], distance: int) -> list[Pair]:
    """One of each group with the same question and answer about the same or nearly the same pictures.

    The best rated stays, among equals the oldest. `phashes` gives each picture's perceptual hash in hex;
    pictures without one are the same only when their bytes are.
    """
    kept: dict[tuple[str, str, int], list[Pair]] = defaultdict(list)
    for each in sorted(pairs, key=lambda pair: (pair.rated.downs - pair.rated.ups, pair.id)):
        exchange, subject = each.rated.exchange, each.lesson.subject
        same_words = kept[_words(exchange.question), _words(exchange.answer), len(subject)]
        if not any(
            all(map(lambda a, b: _near(a, b, phashes, distance), subject, other.lesson.subject)) for other in same_words
        ):
            same_words.append(each)
    ids = {pair.id for group in kept.values() for pair in group}
    return [each for each in pairs if each.id in ids]


def split(
    pairs: Sequence[Pair],
    phashes: Mapping[str, str],
    *,
    distance: int,
    share: float,
    seen: Collection[str] = frozenset(),
) -> tuple[list[Pair], list[Pair]]:
    """Divide into (train, held out) so that no picture, nor a near duplicate of it, is on both sides.

    What counts is the picture an answer is about; pairs about one picture stay together. Where the conversation
    before it shows a picture of the other side, that part of it is left out. Groups are taken in the order of a hash,
    so the same pairs always give the same split, until `share` of the pairs is held out. Groups with a picture in
    `seen`, what the live model was trained on, come last. At least one group stays on either side; with a single
    group nothing is held out.
    """
    groups = _connected(pairs, phashes, distance)
    if len(groups) < 2:
        return list(pairs), []
    seen = frozenset(seen)

    def order(group: list[Pair]) -> tuple[bool, str]:
        pictures = {name for each in group for name in each.lesson.subject}
        names = pictures or {each.lesson.name for each in group}
        return not seen.isdisjoint(pictures), min(sha256(name.encode()).hexdigest() for name in names)

    groups.sort(key=order)
    wanted = max(1, math.ceil(share * len(pairs)))
    held: list[Pair] = []
    for group in groups:
        if len(held) + len(group) <= wanted:
            held += group
        if len(held) >= wanted:
            break
    if not held:
        held = min(groups, key=len)
    ids = {each.id for each in held}
    train = [each for each in pairs if each.id not in ids]
    # By group, not by name: a near duplicate of a picture of the other side is kept out as well.
    side = {name: place for place, group in enumerate((train, held)) for each in group for name in each.lesson.subject}
    for one, other in _near_pairs(sorted(_all_pictures(pairs)), phashes, distance):
        for known, unknown in ((one, other), (other, one)):
            if known in side:
                side.setdefault(unknown, side[known])
    # A picture that nobody's liked answer is about, but that was seen before one, belongs to where it is learned with.
    for name in _all_pictures(train):
        side.setdefault(name, 0)
    return _apart(train, side, 0), _apart([each for each in pairs if each.id in ids], side, 1)


def choose(
    rated: Sequence[RatedExchange],
    phashes: Mapping[str, str],
    *,
    threshold: int,
    distance: int,
    max_length: int | None,
) -> tuple[list[Pair], Counts]:
    """The pairs that teach, in the order of their ids, and what became of the others."""
    good = liked(rated, threshold)
    whole = finished(good)
    short = short_enough(whole, max_length)
    chosen = without_duplicates([Pair(each, lesson(each)) for each in short], phashes, distance)
    return chosen, Counts(
        rated=len(rated),
        disliked=len(rated) - len(good),
        unfinished=len(good) - len(whole),
        cut=sum(each.exchange.finish == "length" for each in good),
        too_long=len(whole) - len(short),
        duplicates=len(short) - len(chosen),
        selected=len(chosen),
        raters=_raters(chosen),
    )


def select_pairs(
    rated: Sequence[RatedExchange],
    phashes: Mapping[str, str],
    *,
    threshold: int,
    min_rated: int,
    share: float,
    distance: int,
    max_length: int | None,
    seen: Collection[str] = frozenset(),
) -> Selection:
    """Choose and split. Raises `TooFewPairs` with the numbers."""
    chosen, counts = choose(rated, phashes, threshold=threshold, distance=distance, max_length=max_length)
    if len(chosen) < min_rated:
        limit = f"{counts.limit}; " if counts.limit else ""
        raise TooFewPairs(
            f"{limit}Not enough yet: {len(chosen)} liked answers, {min_rated} needed. "
            f"Collect {min_rated - len(chosen)} more 👍."
        )
    train, held_out = split(chosen, phashes, distance=distance, share=share, seen=seen)
    if not held_out:
        raise TooFewPairs(
            f"All {len(chosen)} liked answers are about one picture, so none can be held out to check the new model. "
            "Collect 👍 on other pictures."
        )
    return Selection(tuple(train), tuple(held_out), replace(counts, raters=_raters(train)))


def _raters(pairs: Iterable[Pair]) -> int:
    return len({rater for each in pairs for rater in each.rated.liked_by})


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _near(one: str, other: str, phashes: Mapping[str, str], distance: int) -> bool:
    if one == other:
        return True
    first, second = phashes.get(one), phashes.get(other)
    return bool(first and second) and (int(first or "0", 16) ^ int(second or "0", 16)).bit_count() <= distance


def _all_pictures(pairs: Iterable[Pair]) -> set[str]:
    return {name for each in pairs for name in each.lesson.pictures}


def _apart(pairs: Iterable[Pair], side: Mapping[str, int], own: int) -> list[Pair]:
    """The pairs without conversation before their subject where it shows a picture of the other side."""
    return [
        replace(each, lesson=each.lesson.about_subject())
        if any(side.get(name, own) != own for name in each.lesson.pictures)
        else each
        for each in pairs
    ]


def _connected(pairs: Sequence[Pair], phashes: Mapping[str, str], distance: int) -> list[list[Pair]]:
    """Groups of pairs about the same picture or near duplicates, through others too (union and find)."""
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
    for one, other in _near_pairs(sorted(subjects), phashes, distance):
        parent[find(one)] = find(other)
    groups: dict[str, list[Pair]] = defaultdict(list)
    for names, each in zip(keys, pairs, strict=True):
        groups[find(names[0])].append(each)
    return list(groups.values())


def _near_pairs(pictures: Sequence[str], phashes: Mapping[str, str], distance: int) -> Iterable[tuple[str, str]]:
    """Pairs of near duplicates. Two 64-bit hashes within `distance` bits agree in one of `distance + 1` bands."""
    bands = distance + 1
    edges = [64 * band // bands for band in range(bands + 1)]
    for band in range(bands):
        low, width = edges[band], edges[band + 1] - edges[band]
        buckets: dict[int, list[str]] = defaultdict(list)
        for name in pictures:
            if phashes.get(name):
                buckets[int(phashes[name], 16) >> low & (1 << width) - 1].append(name)
        for bucket in buckets.values():
            for index, one in enumerate(bucket):
                for other in bucket[index + 1 :]:
                    if _near(one, other, phashes, distance):
                        yield one, other
