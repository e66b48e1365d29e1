"""Which exchanges are selected, and the split that keeps every picture on one side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from inference.messages import Picture, Role, Turn
from storage.learning_records import RatedExchange
from tests.support.lessons import rated, seen, settings
from training.data.llava import lesson
from training.data.near_duplicates import NearDuplicates
from training.data.pairs import Pair
from training.data.selection import HELD_OUT, TRAIN, Selection, TooFewPairs, select_pairs, split

FAR = [f"{number * 0x0123456789ABCDEF % 2**64:016x}" for number in range(1, 60)]


def select(
    rows: Sequence[RatedExchange],
    *,
    phashes: Mapping[str, str] | None = None,
    max_length: int | None = 10_000,
    **changes: Any,
) -> Selection:
    """Select with settings that accept everything."""
    numbers = {"threshold": 0, "min_rated": 1, "held_out": 0.1, "near_duplicate": 4} | changes
    return select_pairs(rows, phashes or {}, settings().model_copy(update=numbers), max_length=max_length)


def chosen(selection: Selection) -> set[int]:
    """Return the exchange ids on both sides."""
    return {each.id for each in (*selection.train, *selection.held_out)}


def pairs(rows: Sequence[RatedExchange]) -> list[Pair]:
    """Return rows with their lessons."""
    return [Pair(each, lesson(each)) for each in rows]


def test_only_liked_exchanges_are_selected() -> None:
    """The thumbs up less the thumbs down must exceed the threshold."""
    rows = [rated(1, "a", ups=2, downs=1), rated(2, "b", ups=1, downs=1), rated(3, "c", ups=0, downs=1)]
    rows += [rated(4, "d", ups=3)]
    assert chosen(select(rows)) == {1, 4}
    with pytest.raises(TooFewPairs):
        select(rows, threshold=3)
    assert select(rows).counts.disliked == 2


@pytest.mark.parametrize("finish", ["length", "abort"])
def test_an_answer_that_was_cut_off_is_not_selected(finish: str) -> None:
    """It would teach the model to stop in mid-sentence."""
    rows = [rated(1, "a", finish=finish), rated(2, "b"), rated(3, "c")]
    selection = select(rows)
    assert chosen(selection) == {2, 3}
    assert selection.counts.unfinished == 1


def test_a_conversation_that_is_too_long_is_not_selected() -> None:
    """It is counted, not cut."""
    rows = [rated(number, [f"p{number}"], prompt_tokens=97 - number, completion_tokens=5) for number in (1, 2, 3)]
    selection = select(rows, max_length=100)
    assert chosen(selection) == {2, 3}
    assert selection.counts.too_long == 1
    assert chosen(select(rows, max_length=None)) == {1, 2, 3}, "a configuration of one's own says it in the worker"


def test_exact_duplicates_are_selected_once() -> None:
    """The same words about the same picture, with any spacing; the best rated one stays."""
    same: dict[str, Any] = {"question": "What is it?", "answer": "A cup."}
    rows = [
        rated(1, "a", **same),
        rated(2, "a", ups=3, question=" what  is IT?", answer="A cup."),
        rated(3, "b", **same),
    ]
    selection = select(rows)
    assert chosen(selection) == {2, 3}
    assert selection.counts.duplicates == 1


def test_near_duplicates_are_selected_once() -> None:
    """The same words about pictures within the hash distance; beyond it both are selected."""
    same: dict[str, Any] = {"question": "What is it?", "answer": "A cup."}
    rows = [rated(1, ["a"], **same), rated(2, ["b"], **same), rated(3, ["c"], **same), rated(4, ["d"], **same)]
    phashes = {"a": "0000000000000000", "b": "8000000000000111", "c": "80000000000f0111", "d": FAR[3]}
    assert chosen(select(rows, phashes=phashes)) == {1, 3, 4}
    assert chosen(select(rows, phashes=phashes, near_duplicate=0)) == {1, 2, 3, 4}


def test_other_words_about_one_picture_are_no_duplicates() -> None:
    """A picture may have several pairs."""
    rows = [rated(1, "a"), rated(2, "a"), rated(3, "b")]
    assert chosen(select(rows)) == {1, 2, 3}


def test_too_few_pairs_are_an_error_with_the_numbers() -> None:
    """The error has how many there are and how many are missing."""
    rows = [rated(1, "a"), rated(2, "b"), rated(3, "c", ups=0, downs=1)]
    with pytest.raises(TooFewPairs, match=r"^Not enough yet: 2 liked answers, 5 needed\. Collect 3 more 👍\.$"):
        select(rows, min_rated=5)


def test_one_picture_alone_cannot_be_split() -> None:
    """If every pair is about one picture, none can be held out."""
    with pytest.raises(TooFewPairs, match="one picture"):
        select([rated(1, "a"), rated(2, "a"), rated(3, "a")])


def test_a_tenth_is_held_out_and_no_picture_is_on_both_sides() -> None:
    """Of 100 pairs about 50 pictures ten are held out, always the same ones."""
    rows = [rated(number, [f"picture-{number // 2}"]) for number in range(100)]
    selection = select(rows, min_rated=100)
    assert len(selection.held_out) == 10
    assert len(selection.train) == 90
    sides = [{name for each in side for name in each.lesson.pictures} for side in (selection.train, selection.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert sorted(select(rows[::-1], min_rated=100).rows()) == sorted(selection.rows())
    assert {side for _, side in selection.rows()} == {TRAIN, HELD_OUT}
    assert selection.counts.raters == 1


def test_the_longest_answer_is_named_if_many_answers_reach_it() -> None:
    """If over a third of the liked answers were cut off, the error begins with the cause and the setting."""
    rows = [rated(number, [f"p{number}"], finish="length" if number < 4 else "stop") for number in range(10)]
    assert str(select(rows).counts.limit).startswith("4 of 10 liked answers were cut off")
    with pytest.raises(
        TooFewPairs, match=r"^4 of 10 liked answers were cut off.*raise chat.max_new_tokens; Not enough yet: 6 liked"
    ):
        select(rows, min_rated=8)
    with pytest.raises(TooFewPairs, match=r"Collect 2 more 👍\. Left out: 4 cut off\.$"):
        select(rows, min_rated=8)
    assert select(rows[1:]).counts.limit is None, "a third of them is no cause"
    stopped = [rated(number, [f"p{number}"], finish="abort" if number < 9 else "stop") for number in range(20)]
    assert select(stopped).counts.limit is None, "nor are those that people stopped"


def test_raters_are_those_who_liked_what_is_trained_on() -> None:
    """Users who voted against it, or for a held-out pair, do not count."""
    rows = [replace(rated(number, [f"p{number}"]), raters=(number,), liked_by=(number,)) for number in range(10)]
    rows[0] = replace(rows[0], ups=2, downs=1, raters=(0, 100, 200), liked_by=(0, 100))
    selection = select(rows, held_out=0.2)
    taught = {each.id for each in selection.train}
    assert len(selection.held_out) == 2
    assert selection.counts.raters == len(taught) + (0 in taught)


def test_near_duplicates_stay_on_one_side() -> None:
    """Other questions about nearly the same picture are on its side."""
    rows = [rated(number, [f"p{number}"]) for number in range(40)]
    phashes = {f"p{number}": f"{int(FAR[number // 2], 16) ^ (number % 2) * 0b101:016x}" for number in range(40)}
    selection = select(rows, phashes=phashes)
    held = {int(name[1:]) // 2 for each in selection.held_out for name in each.lesson.pictures}
    train = {int(name[1:]) // 2 for each in selection.train for name in each.lesson.pictures}
    assert held and held.isdisjoint(train)


def test_what_the_live_model_has_learned_is_held_out_last() -> None:
    """Pictures that the live model was trained on are held out only if there are no others."""
    rows = [rated(number, [f"p{number}"]) for number in range(20)]
    learned = {f"p{number}" for number in range(15)}
    _, held = split(pairs(rows), NearDuplicates({}, 4), share=0.2, seen=learned)
    assert len(held) == 4
    assert learned.isdisjoint(name for each in held for name in each.lesson.pictures)
    _, held = split(pairs(rows), NearDuplicates({}, 4), share=0.4, seen=learned)
    assert len(held) == 8


def test_a_group_larger_than_the_share_is_trained_on() -> None:
    """If one picture has most of the pairs, another is held out."""
    rows = [rated(number, ["popular"]) for number in range(18)] + [rated(18, ["rare"]), rated(19, ["odd"])]
    train, held = split(pairs(rows), NearDuplicates({}, 4), share=0.1)
    assert {each.id for each in held} == {18, 19}
    assert len(train) == 18


def test_a_conversation_about_two_pictures_is_trimmed() -> None:
    """If the turns before an answer show a picture of the other side, they are dropped."""
    rows = []
    for number in range(0, 40, 2):
        before = rated(number, [f"p{number}"])
        turns = [
            Turn(Role.USER, before.exchange.question, (Picture(b"", f"p{number}"),)),
            Turn(Role.ASSISTANT, before.exchange.answer),
            Turn(Role.USER, f"Question {number + 1}?", (Picture(b"", f"p{number + 1}"),)),
        ]
        after = rated(number + 1, [f"p{number + 1}"], history=(before,), prompt_hash=seen(before.exchange, *turns))
        rows += [before, after]
    selection = select(rows, held_out=0.2)
    sides = [{name for each in side for name in each.lesson.pictures} for side in (selection.train, selection.held_out)]
    assert sides[0].isdisjoint(sides[1])
    lengths = {len(each.lesson.turns) for side in (selection.train, selection.held_out) for each in side}
    assert lengths == {2, 4}, "where both are on one side the talk stays"
