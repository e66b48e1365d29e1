"""What KTO and DPO learn from beside the liked answers: disliked answers, and rejected ones.

Pure functions over rows of the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from storage.learning_records import Preference, RatedExchange
from training.data.influence import allowance, limit_thumbs_down, owners
from training.data.llava import Rejected, lesson, row_name
from training.data.near_duplicates import NearDuplicates
from training.data.pairs import Pair, separate
from training.data.selection import Selection, finished, short_enough, within_share, without_duplicates
from training.settings import TrainingSettings


def disliked_pairs(
    rated: Sequence[RatedExchange],
    near: NearDuplicates,
    settings: TrainingSettings,
    *,
    max_length: int | None,
    most: float,
) -> list[Pair]:
    """Return the disliked answers, ordered by id: their thumbs down less their thumbs up exceed `training.threshold`.

    They pass the filters of liked answers, and each counts for one of those who dislike it, `most` for each rater.
    """
    found = [each for each in rated if not each.corrected and each.downs - each.ups > settings.threshold]
    pairs = [Pair(each, replace(lesson(each), liked=False)) for each in short_enough(finished(found), max_length)]
    different = without_duplicates(pairs, near)
    owner = owners({each.id: set(each.rated.raters).difference(each.rated.liked_by) for each in different})
    return within_share(different, owner, near, most)


def with_disliked(
    selection: Selection,
    rated: Sequence[RatedExchange],
    phashes: Mapping[str, str],
    settings: TrainingSettings,
    max_length: int | None,
) -> Selection:
    """Add the disliked answers to the pairs to train on, except those about a held-out picture or one nearly the same.

    A rater has the allowance of the liked answers: where one account alone dislikes much, it would be its own measure.
    """
    teachers = Counter(each.rater for each in (*selection.train, *selection.held_out) if each.rater is not None)
    near = NearDuplicates(phashes, settings.near_duplicate)
    held_out = {name for each in selection.held_out for name in each.lesson.subject}
    rated = limit_thumbs_down(rated, settings.threshold, settings.rater_share)
    apart = [
        each
        for each in disliked_pairs(
            rated, near, settings, max_length=max_length, most=allowance(teachers, settings.rater_share)
        )
        if not any(near.match(name, other) for name in each.lesson.subject for other in held_out)
    ]
    train = sorted((*selection.train, *separate(apart, selection.held_out, near)[0]), key=lambda pair: pair.id)
    return replace(selection, train=tuple(train))


def with_rejected(pairs: Iterable[Pair], preferences: Iterable[Preference]) -> list[Pair]:
    """Return the pairs with their rejected answers, the newest one of several."""
    rejected = {each.chosen.exchange.id: each for each in preferences}
    return [_with_rejected(pair, rejected[pair.id]) if pair.id in rejected else pair for pair in pairs]


def _with_rejected(pair: Pair, preference: Preference) -> Pair:
    number = preference.rejected_exchange
    rejected = Rejected(row_name(number), preference.rejected)
    return replace(pair, lesson=replace(pair.lesson, rejected=rejected), rejected=number)
