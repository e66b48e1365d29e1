"""Which exchanges a run selects to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from storage.learning_records import RatedExchange
from tests.support.lessons import rated, settings
from training.data.selection import Selection, select_pairs
from training.job import TrainingError

FAR = [f"{number * 0x0123456789ABCDEF % 2**64:016x}" for number in range(1, 60)]


def select(
    rows: Sequence[RatedExchange],
    *,
    phashes: Mapping[str, str] | None = None,
    max_length: int | None = 10_000,
    **changes: Any,
) -> Selection:
    """Select pairs from `rows` with permissive settings, overridden by `changes`."""
    numbers = {"threshold": 0, "min_rated": 1, "near_duplicate": 4} | changes
    return select_pairs(rows, phashes or {}, settings().model_copy(update=numbers), max_length=max_length)


def chosen(selection: Selection) -> set[int]:
    """Return the IDs of the exchanges to train on."""
    return {each.id for each in selection.train}


def test_only_liked_exchanges_are_selected() -> None:
    """An exchange is selected only if its thumbs up outnumber its thumbs down by more than the threshold."""
    rows = [rated(1, "a", ups=2, downs=1), rated(2, "b", ups=1, downs=1), rated(3, "c", ups=0, downs=1)]
    rows += [rated(4, "d", ups=3)]
    assert chosen(select(rows)) == {1, 4}
    with pytest.raises(TrainingError, match=r"^Not enough yet: 0 liked answers"):
        select(rows, threshold=3)
    assert select(rows).counts.disliked == 2


@pytest.mark.parametrize("finish", ["length", "abort"])
def test_an_answer_that_was_cut_off_is_not_selected(finish: str) -> None:
    """An unfinished answer is not selected, because it would teach the model to stop mid-sentence."""
    rows = [rated(1, "a", finish=finish), rated(2, "b"), rated(3, "c")]
    selection = select(rows)
    assert chosen(selection) == {2, 3}
    assert selection.counts.unfinished == 1


def test_a_conversation_that_is_too_long_is_not_selected() -> None:
    """A conversation that is too long is left out and counted, not truncated."""
    rows = [rated(number, [f"p{number}"], prompt_tokens=97 - number, completion_tokens=5) for number in (1, 2, 3)]
    selection = select(rows, max_length=100)
    assert chosen(selection) == {2, 3}
    assert selection.counts.too_long == 1
    assert chosen(select(rows, max_length=None)) == {1, 2, 3}, "a configuration of one's own says it in the worker"


def test_exact_duplicates_are_selected_once() -> None:
    """Of pairs with the same words about the same picture, only the best-rated one is selected.

    Differences in spacing and case do not matter.
    """
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
    """Of pairs with the same words about nearly identical pictures, only one is selected.

    Pictures are nearly identical if their perceptual hashes differ by at most the configured distance.
    """
    same: dict[str, Any] = {"question": "What is it?", "answer": "A cup."}
    rows = [rated(1, ["a"], **same), rated(2, ["b"], **same), rated(3, ["c"], **same), rated(4, ["d"], **same)]
    phashes = {"a": "0000000000000000", "b": "8000000000000111", "c": "80000000000f0111", "d": FAR[3]}
    assert chosen(select(rows, phashes=phashes)) == {1, 3, 4}
    assert chosen(select(rows, phashes=phashes, near_duplicate=0)) == {1, 2, 3, 4}


def test_other_words_about_one_picture_are_no_duplicates() -> None:
    """Pairs with different words about the same picture are all selected."""
    rows = [rated(1, "a"), rated(2, "a"), rated(3, "b")]
    assert chosen(select(rows)) == {1, 2, 3}


def test_too_few_pairs_are_an_error_with_the_numbers() -> None:
    """If there are too few pairs, the error states how many there are and how many are missing."""
    rows = [rated(1, "a"), rated(2, "b"), rated(3, "c", ups=0, downs=1)]
    with pytest.raises(TrainingError, match=r"^Not enough yet: 2 liked answers, 5 needed\. Collect 3 more 👍\.$"):
        select(rows, min_rated=5)


def test_the_longest_answer_is_named_if_many_answers_reach_it() -> None:
    """If more than a third of the liked answers reach the length limit, the error names the setting to raise.

    The cause comes first in the error, before the number of missing answers.
    """
    rows = [rated(number, [f"p{number}"], finish="length" if number < 4 else "stop") for number in range(10)]
    assert str(select(rows).counts.limit).startswith("4 of 10 liked answers were cut off")
    with pytest.raises(
        TrainingError, match=r"^4 of 10 liked answers were cut off.*raise chat.max_new_tokens; Not enough yet: 6 liked"
    ):
        select(rows, min_rated=8)
    with pytest.raises(TrainingError, match=r"Collect 2 more 👍\. Left out: 4 cut off\.$"):
        select(rows, min_rated=8)
    assert select(rows[1:]).counts.limit is None, "a third of them is no cause"
    stopped = [rated(number, [f"p{number}"], finish="abort" if number < 9 else "stop") for number in range(20)]
    assert select(stopped).counts.limit is None, "nor are those that people stopped"


def test_raters_are_those_who_liked_what_is_trained_on() -> None:
    """Users count as raters if they liked a selected answer, but not if they only disliked one."""
    rows = [replace(rated(number, [f"p{number}"]), raters=(number,), liked_by=(number,)) for number in range(10)]
    rows[0] = replace(rows[0], ups=2, downs=1, raters=(0, 100, 200), liked_by=(0, 100))
    assert select(rows).counts.raters == 11
