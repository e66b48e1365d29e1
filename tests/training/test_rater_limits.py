"""Limits on how much one rater's votes can change what a run learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from storage.learning_records import Newcomers, RatedExchange
from tests.support.lessons import rated, settings
from training.data.rater_limits import allowance, beyond_allowance, limit_thumbs_down, owners
from training.data.selection import Selection, select_pairs
from training.job import TrainingError

HOSTILE = 99


def voted(number: int, likes: Sequence[int], dislikes: Sequence[int] = (), **changes: Any) -> RatedExchange:
    """Return exchange `number`, about its own picture, liked by the raters `likes` and disliked by `dislikes`."""
    made = rated(number, [f"p{number}"], ups=len(likes), downs=len(dislikes), **changes)
    return replace(made, raters=tuple(sorted((*likes, *dislikes))), liked_by=tuple(sorted(likes)))


def select(rows: Sequence[RatedExchange], **changes: Any) -> Selection:
    """Select the pairs of a run from `rows`, requiring only two pairs; `changes` override other settings."""
    return select_pairs(rows, {}, settings(min_rated=2, **changes))


def chosen(selection: Selection) -> set[int]:
    """Return the IDs of the exchanges to train on."""
    return {each.id for each in selection.train}


def test_one_hostile_account_among_twenty_has_at_most_its_share() -> None:
    """One hostile rater among twenty neither adds nor removes more lessons than the allowed share.

    The rater likes as many answers as all the others together and dislikes every answer that they like.
    """
    honest = [voted(number, [number % 19], [HOSTILE]) for number in range(57)]
    hostile = [voted(number, [HOSTILE]) for number in range(100, 157)]
    selection = select(honest + hostile)
    lessons = selection.train
    theirs = [each.id for each in sorted(lessons, key=lambda each: each.id) if each.rated.liked_by == (HOSTILE,)]
    assert len(theirs) == 6, "twice the median rater's three"
    assert theirs == [*range(151, 157)], "the newest stay"
    assert len(lessons) - len(theirs) == 57 - 6, "it keeps no more answers out than it may teach"
    assert selection.counts.over_share == 51
    assert selection.largest_share < 0.12
    everything = select(honest + hostile, rater_share=0)
    assert chosen(everything) == set(range(100, 157)), "without the limit nothing else would be left"


def test_one_hostile_account_has_at_most_its_share_of_disliked_lessons() -> None:
    """With KTO, a rater's thumbs down on answers that no one likes add no more lessons than thumbs up could."""
    honest = [voted(number, [number % 19]) for number in range(57)]
    hostile = [voted(number, [], [HOSTILE]) for number in range(100, 157)]
    selection = select_pairs(honest + hostile, {}, settings(min_rated=2), objective="kto")
    assert [each.id for each in selection.train if not each.lesson.liked] == [*range(151, 157)]


def test_a_popular_answer_counts_for_the_rater_with_the_fewest() -> None:
    """An answer that several raters like counts for whichever of them has the fewest answers so far.

    Popular answers are thus spread over their raters and do not use up one rater's allowance.
    """
    assert owners({1: [7, 8], 2: [7], 3: [7, 8], 4: [7, 9]}) == {2: 7, 1: 8, 3: 7, 4: 9}
    assert owners({1: []}) == {}
    rows = [voted(number, range(15)) for number in range(30)] + [voted(number, [HOSTILE]) for number in range(50, 80)]
    owned = Counter(each.rater for each in select(rows).train if each.rater != HOSTILE)
    assert max(owned.values()) <= 2
    assert len(chosen(select(rows)) & set(range(50, 80))) == 4


def test_the_allowance_is_a_multiple_of_the_median_raters() -> None:
    """A rater's allowance is a multiple of the median rater's number of answers, but at least three.

    With only one or two raters, a factor of 2 limits no one.
    """
    assert allowance({1: 10, 2: 4, 3: 5}, 2.0) == 10
    assert allowance({1: 10, 2: 1, 3: 1}, 2.0) == 3
    assert allowance({1: 10, 2: 1}, 2.0) == 11
    assert allowance({1: 10}, 2.0) == 20
    assert allowance({1: 10, 2: 4, 3: 5}, 0) == allowance({}, 2.0) == float("inf")


def test_the_newest_and_most_different_answers_stay() -> None:
    """A rater's allowance keeps the newest answers and those least similar to newer ones.

    An answer that shares its picture or question with newer answers is dropped before an older one
    that shares neither.
    """
    same_picture: dict[int, list[object]] = {number: ["p", number] for number in (5, 6, 7)}
    other: dict[int, list[object]] = {1: ["q", 1], 2: ["r", 2]}
    assert beyond_allowance(dict.fromkeys([1, 2, 5, 6, 7], 0), 3, same_picture | other) == {5, 6}
    assert beyond_allowance(dict.fromkeys([1, 2, 5, 6, 7], 0), 3, {}) == {1, 2}
    assert beyond_allowance({1: 0, 2: 1}, 3, {}) == set()


def test_pictures_that_are_nearly_the_same_are_not_different() -> None:
    """Answers about pictures with nearly equal perceptual hashes count as being about the same picture."""
    rows = [voted(number, [number % 9]) for number in range(18)] + [
        voted(number, [HOSTILE]) for number in range(20, 30)
    ]
    phashes = {f"p{number}": f"{number:016x}" for number in range(26, 30)}
    kept = select_pairs(rows, phashes, settings(min_rated=2, near_duplicate=4))
    assert chosen(kept) & set(range(20, 30)) == {29, 25, 24, 23}


def test_thumbs_down_of_several_people_are_not_limited() -> None:
    """Thumbs down on answers that many raters dislike are not limited.

    Each answer counts for only one of the raters who dislike it, so none of them exceeds the allowance.
    """
    rows = [voted(number, [1, 2], range(10, 20)) for number in range(20)]
    rows += [voted(number, [number % 5]) for number in range(30, 40)]
    assert limit_thumbs_down(rows, 0, 2.0) == rows


def test_thumbs_down_where_no_one_else_likes_the_answer_are_not_limited() -> None:
    """Thumbs down on an answer that no one likes are not limited, because they remove no lesson."""
    rows = [voted(number, [], [HOSTILE]) for number in range(20)] + [voted(30, [1], [HOSTILE])]
    assert limit_thumbs_down(rows, 0, 2.0) == rows


def test_too_few_people_are_an_error_with_the_next_step() -> None:
    """If too few raters liked any of the answers, the error names the number needed and the setting to change."""
    rows = [voted(number, [1]) for number in range(8)]
    assert chosen(select(rows))
    with pytest.raises(
        TrainingError,
        match=r"^Too few people: .* from 1 of the 2 people needed.*min_raters = 1 for a personal bot\.$",
    ):
        select(rows, min_raters=2)


def test_what_waits_to_be_counted_need_not_be_collected() -> None:
    """An error about too few votes says when new users' votes count, and asks only for what will still be missing."""
    new = Newcomers(3, datetime(2026, 12, 1, 3, 0, 7, tzinfo=UTC).timestamp(), 86400)
    first = (
        r"New people whose votes don't count yet: 3\. The first of these votes count from 2026-12-01 03:01 UTC "
        r"\(training\.rater_age = 24 hours; 0 counts them at once\)\.$"
    )
    rows = [voted(number, [1]) for number in range(8)]
    all_rows = [voted(number, [1, 2]) for number in range(20)]

    def refused(match: str, later: Sequence[RatedExchange], **wanted: int) -> None:
        with pytest.raises(TrainingError, match=match + first):
            select_pairs(rows, {}, settings(**wanted), newcomers=new, rated_later=later)

    refused(r"^Not enough yet: 8 liked answers, 20 needed\. ", all_rows, min_rated=20)
    refused(r"^Not enough yet: 8 liked answers, 24 needed\. Collect 4 more 👍\. ", all_rows, min_rated=24)
    refused(r"^Too few people: liked answers have 👍 from 1 of the 2 people needed\. ", all_rows, min_raters=2)
    refused(r"^Too few people: .* 2 people needed\. Let others vote too, or .* personal bot\. ", rows, min_raters=2)
