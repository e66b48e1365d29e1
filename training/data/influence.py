"""Limit what one rater's votes can do to a run, for better or worse.

A lesson counts for one of the people who like it, and an answer that thumbs down keep out of the lessons counts for one
of those who dislike it. No one may have more of either than `allowance`. So an account that likes as much as all others
together teaches little more than the median rater, and one that dislikes everything removes no more lessons than it
could teach. One number for both is enough: what a rater may add is what a rater may take away.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import Final

from storage.learning_records import RatedExchange

AT_LEAST: Final = 3
"""Answers that may count for each rater, however few the others have."""


def owners(voters: Mapping[int, Collection[int]]) -> dict[int, int]:
    """Assign each answer to one of its voters, so that the numbers of answers per voter differ as little as possible.

    Answers with few voters come first, since they leave the least choice; each goes to the voter who has the fewest so
    far. The answers that many people like are thus spread over all of them.

    Args:
        voters: The people who voted alike on each answer, by the answer's id. Answers without voters are left out.
    """
    owned = Counter[int]()
    found = {}
    for answer, people in sorted(voters.items(), key=lambda item: (len(item[1]), item[0])):
        if people:
            found[answer] = min(people, key=lambda rater: (owned[rater], rater))
            owned[found[answer]] += 1
    return found


def allowance(owned: Mapping[int, int], factor: float) -> float:
    """Return the largest number of answers that may count for one rater.

    That is `factor` times the median rater's number, but at least `AT_LEAST`. Raters without an answer are not in
    `owned`. With one or two raters, a factor of 2 limits no one: there is no majority to measure them by.

    Args:
        owned: The number of answers of each rater.
        factor: `training.rater_share`; 0 for no limit.
    """
    return max(AT_LEAST, factor * median(owned.values())) if factor and owned else math.inf


def beyond_allowance(owner: Mapping[int, int], most: float, features: Mapping[int, Collection[Hashable]]) -> set[int]:
    """Return the answers of each rater in excess of the allowance. The newest and most different ones stay within it.

    Args:
        owner: The rater each answer is attributed to, by the answer's id; higher ids are newer.
        most: The allowance.
        features: What makes answers alike. The fewer newer answers of the same rater share an answer's features, the
            more different it is.
    """
    answers: dict[int, list[int]] = defaultdict(list)
    for answer, rater in owner.items():
        answers[rater].append(answer)
    beyond = set[int]()
    for own in answers.values():
        if len(own) > most:
            beyond.update(_most_different(own, features)[math.floor(most) :])
    return beyond


def limit_thumbs_down(rated: Iterable[RatedExchange], threshold: int, factor: float) -> list[RatedExchange]:
    """Return the exchanges without the thumbs down that exceed their raters' allowance.

    Only thumbs down that keep an answer out of the lessons are limited: the answer has more than `threshold` thumbs up,
    but not once the thumbs down are subtracted. Of these, the newest of each rater count. The allowance is the same
    as for thumbs up, counted over the answers that would be liked if no one disliked them. If it were counted over
    dislikes, a single hostile account would be the median.
    """
    rated = list(rated)
    wanted = [each for each in rated if not each.corrected and each.ups > threshold]
    teachers = Counter(owners({each.exchange.id: each.liked_by for each in wanted}).values())
    removed = owners(
        {
            each.exchange.id: set(each.raters) - set(each.liked_by)
            for each in wanted
            if each.ups - each.downs <= threshold
        }
    )
    ignored = beyond_allowance(removed, allowance(teachers, factor), {})
    return [
        replace(
            each,
            downs=each.downs - 1,
            raters=tuple(rater for rater in each.raters if rater != removed[each.exchange.id]),
        )
        if each.exchange.id in ignored
        else each
        for each in rated
    ]


def _most_different(answers: Iterable[int], features: Mapping[int, Collection[Hashable]]) -> list[int]:
    """Return answers by the number of newer ones that share a feature with them; among equals, newest first."""
    seen = Counter[Hashable]()
    repeats = {}
    for answer in sorted(answers, reverse=True):
        own = features.get(answer, ())
        repeats[answer] = sum(seen[feature] for feature in own)
        seen.update(own)
    return sorted(repeats, key=lambda answer: (repeats[answer], -answer))
