"""Limit how much one rater's votes can add to a run or remove from it.

Each answer to train on is attributed to one of the users who like it. Each answer that thumbs down exclude
from training is attributed to one of the users who dislike it. No more than `allowance` answers of either
kind may be attributed to one rater. An account that likes as many answers as all others together therefore
contributes little more than the median rater, and an account that dislikes everything removes no more
answers than it could add.
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
"""The number of answers that may count for any rater, however few the other raters have."""


def owners(voters: Mapping[int, Collection[int]]) -> dict[int, int]:
    """Assign each answer to one of its voters so that all voters get similar numbers of answers.

    Answers with few voters are assigned first, since they leave the least choice; each goes to the voter
    with the fewest answers so far. Answers that many users like are thus spread over all of those users.

    Args:
        voters: The users who voted the same way on each answer, by the answer's ID. Answers without voters
            are left out of the result.
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

    The number is `factor` times the median number of answers per rater, but at least `AT_LEAST`. With one or
    two raters, a factor of 2 limits nobody, because there is no majority to compare them with.

    Args:
        owned: The number of answers that count for each rater who has any.
        factor: The setting `training.rater_share`; 0 for no limit.
    """
    return max(AT_LEAST, factor * median(owned.values())) if factor and owned else math.inf


def beyond_allowance(owner: Mapping[int, int], most: float, features: Mapping[int, Collection[Hashable]]) -> set[int]:
    """Return the answers that exceed their rater's allowance.

    Each rater keeps the answers that are most different from newer ones and, among equals, the newest.

    Args:
        owner: The rater that each answer counts for, by the answer's ID; higher IDs are newer.
        most: The allowance.
        features: The features that make answers alike, by the answer's ID. The less an answer's features
            recur in the same rater's newer answers, the more different it is.
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
    """Remove the thumbs down that exceed their rater's allowance, and return the exchanges.

    Only thumbs down that exclude an answer from training are limited: those on an answer whose thumbs up
    exceed `threshold` on their own, but not once its thumbs down are subtracted. Each rater's thumbs down on
    the newest such answers count first. The allowance is the same as for thumbs up and is computed from the
    answers that would be liked if nobody disliked them. If it were computed from dislikes, a single hostile
    account would itself be the median.
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
    """Sort answers by the number of features that they share with newer answers, fewest first.

    Among equals, the newest come first.
    """
    seen = Counter[Hashable]()
    repeats = {}
    for answer in sorted(answers, reverse=True):
        own = features.get(answer, ())
        repeats[answer] = sum(seen[feature] for feature in own)
        seen.update(own)
    return sorted(repeats, key=lambda answer: (repeats[answer], -answer))
