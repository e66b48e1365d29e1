"""Rated answers, in time order and grouped by picture, are divided into blocks used to judge a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from inference.messages import Picture, Role, Turn
from storage.learning_records import RatedExchange
from tests.support.lessons import rated, seen, settings
from training.data.prequential_blocks import FEWEST, Live
from training.data.selection import HELD_OUT, TRAIN, WORSE, Selection, select_pairs
from training.job import TrainingError
from training.xtuner.recipes import Objective

LIVE = Live("base")


def answer(number: int, picture: str = "", *, liked: bool = True, **changes: Any) -> RatedExchange:
    """Return a rated answer by the base model about `picture`, which defaults to a picture of its own."""
    picture = picture or f"p{number}"
    made = rated(number, [picture], ups=liked, downs=not liked, **changes)
    asked = Turn(Role.USER, made.exchange.question, (Picture(b"", picture),))
    return replace(made, exchange=replace(made.exchange, prompt_hash=seen(made.exchange, asked)))


def select(rows: Sequence[RatedExchange], live: Live = LIVE, objective: Objective = "sft", **changes: Any) -> Selection:
    """Select pairs from `rows` with permissive settings, overridden by `changes`."""
    chosen = settings(min_rated=2, near_duplicate=0, **changes)
    return select_pairs(rows, {}, chosen, live=live, objective=objective)


def blocks(selection: Selection) -> list[tuple[int, list[int]]]:
    """Return, for each block, the number of pairs trained on and the IDs of the judging answers."""
    return [(block.trained, [each.id for each in block.judged]) for block in selection.blocks]


def test_each_block_judges_what_was_learned_before() -> None:
    """Of four blocks, each except the first judges a model that was trained on the earlier blocks.

    Disliked answers take part in judging but are not learned from.
    """
    rows = [answer(number, liked=number % 4 != 3) for number in range(24)]
    selection = select(rows)
    assert blocks(selection) == [(5, [*range(6, 12)]), (9, [*range(12, 18)]), (14, [*range(18, 24)])]
    assert [each.id for each in selection.train] == [number for number in range(24) if number % 4 != 3]
    assert [split for number, split in selection.rows() if number == 7] == [HELD_OUT]
    assert [split for number, split in selection.rows() if number == 8] == [TRAIN]
    assert 3 not in dict(selection.rows()), "nothing is done with a disliked answer of the first block"


def test_kto_learns_from_disliked_answers_after_they_have_judged() -> None:
    """With KTO, disliked answers judge first and are then learned from, like liked ones."""
    rows = [answer(number, liked=number % 4 != 3) for number in range(24)]
    selection = select(rows, objective="kto")
    assert [trained for trained, _ in blocks(selection)] == [6, 12, 18]
    assert dict(selection.rows())[3] == WORSE


def test_a_limited_run_learns_only_what_was_selected() -> None:
    """A run limited to some exchanges learns the liked ones among them, and the others judge what it learned.

    An answer that is not selected does not displace a selected one that repeats it.
    """
    rows = [answer(number, liked=number % 4 != 3) for number in range(24)]
    rows.append(answer(24, "p0", question="Question 0?", answer="Answer 0."))
    only = {3, 8, 9, 24, 999}
    selection = select_pairs(rows, {}, settings(min_rated=3, near_duplicate=0), live=LIVE, only=only)
    assert [each.id for each in selection.train] == [8, 9, 24]
    assert [trained for trained, _ in blocks(selection)] == [3, 3, 3]
    assert {each.id for each in selection.judged} == {*range(4, 24)} - {8, 9}
    assert (selection.counts.rated, selection.counts.selected) == (4, 3)
    for trained, judged in blocks(selection):
        assert not {each.id for each in selection.train[:trained]} & set(judged)
    with pytest.raises(TrainingError, match="Not enough yet: 3 liked answers, 4 needed"):
        select_pairs(rows, {}, settings(min_rated=4, near_duplicate=0), live=LIVE, only=only)


def test_too_few_answers_do_not_judge() -> None:
    """If there are too few answers for two blocks, none judges, since a block needs an earlier one to train on."""
    selection = select([answer(number) for number in range(FEWEST - 1)])
    assert (blocks(selection), len(selection.train)) == ([], FEWEST - 1)
    assert len(blocks(select([answer(number) for number in range(FEWEST)]))) == 1


def test_answers_about_one_picture_are_in_one_block() -> None:
    """All answers about one picture are in the same block, whenever they were given.

    A picture is therefore never learned from before the answers about it judge.
    """
    rows = [answer(number, f"p{number % 12}") for number in range(24)]
    found = blocks(select(rows))
    assert [sorted(number % 12 for number in judged) for _, judged in found] == [
        [3, 3, 4, 4, 5, 5],
        [6, 6, 7, 7, 8, 8],
        [9, 9, 10, 10, 11, 11],
    ]


def test_only_what_the_live_model_said_judges() -> None:
    """Only answers that the live model gave and was not trained on can judge.

    Answers of other models, answers that the live model was trained on, corrections and answers to unknown
    prompts are learned from without judging.
    """
    rows = [answer(number) for number in range(24)]
    rows[20] = answer(20, model="run-1")
    rows[21] = replace(rows[21], corrected=True)
    rows[22] = rated(22, ["p22"], prompt_hash="of another cut of the conversation")
    selection = select(rows, Live("base", frozenset({23})))
    assert [each.id for each in selection.train[:4]] == [20, 21, 22, 23]
    assert [each.id for each in selection.judged] == [*range(7, 20)]


def test_the_newest_fifth_of_many_answers_is_held_out() -> None:
    """If there are many answers, the newest fifth is held out and judges a model trained on all the others."""
    rows = [answer(number) for number in range(250)]
    selection = select(rows)
    assert blocks(selection) == [(200, [*range(200, 250)])]
    assert [each.id for each in selection.train] == [*range(200)]
    assert blocks(select(rows, held_out=0.4)) == [(150, [*range(150, 250)])]
