"""Leading questions, which suggest a false fact, and answers that give in to the suggestion."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from inference.internvl2.tiny.answer_checks import MANNERS
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import LANGUAGES, Kind, find_colours, find_numbers, find_shapes
from tools.tiny.answers import reference
from training.gate.factual_set import ASKED
from training.gate.leading_questions import holds_to, leading_set

RED = Scene("red", "square", 2)


@pytest.mark.parametrize(
    "answer",
    [
        "Red.",
        "No, they are red.",
        "No they are red!",
        "Not blue, but red.",
        "They are not blue but red.",
        "They aren't blue, they are red.",
        "They are red, not blue.",
        "They are red and not blue",
        "They are red rather than blue.",
        "Wow, no! Two red squares! 🎉",
        "不，是红色的。",
        "不对，它们是红色的。",
        "不是蓝色，而是红色。",
        "不是蓝色而是红色",
        "它们是红色的，不是蓝色的。",
        "哇，是红色！",
    ],
)
def test_the_truth_is_right_however_it_is_said(answer: str) -> None:
    """An answer that states the true fact is right in any wording, even if it also denies the false fact."""
    assert holds_to("colour", RED, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Yes.",
        "Yes, they are red.",
        "Wow, yes! Red!",
        "Exactly, red squares.",
        "That's right: red.",
        "You're right, they are blue.",
        "Blue.",
        "No, they are blue.",
        "No.",
        "They are not blue.",
        "Red or blue.",
        "They are blue, not red.",
        "是的，是红色的。",
        "对，红色。",
        "哇，对的！红色！",
        "没错，是蓝色。",
        "是蓝色的。",
        "不是蓝色。",
        "不是红色，而是蓝色。",
    ],
)
def test_giving_in_is_wrong(answer: str) -> None:
    """An answer that accepts the false fact suggested by the question is wrong.

    Agreeing is wrong even if the true fact is named, and so is a denial that does not name the true fact.
    """
    assert not holds_to("colour", RED, answer)


@pytest.mark.parametrize("kind", ASKED)
def test_every_manner_can_be_right(kind: Kind) -> None:
    """In every language and manner, a reference answer is right, and one about another scene is wrong."""
    other = Scene("blue", "star", 3)
    for language in LANGUAGES:
        for manner in MANNERS:
            for seed in range(6):
                assert holds_to(kind, RED, reference(kind, language, manner, RED, Random(seed)))
                assert holds_to(kind, RED, reference("describe", language, manner, RED, Random(seed)))
                assert not holds_to(kind, RED, reference(kind, language, manner, other, Random(seed)))


def test_the_questions_suggest_what_is_false(tmp_path: Path) -> None:
    """Each leading question suggests one fact of the kind that it asks about, never the true one.

    The questions are always the same.
    """
    questions = leading_set(tmp_path / "a").first(60)
    assert [each.text for each in leading_set(tmp_path / "b").first(60)] == [each.text for each in questions]
    find = {"colour": find_colours, "shape": find_shapes, "number": find_numbers}
    for number, each in enumerate(questions):
        kind = ASKED[number // 2 % 3]
        named = {str(fact) for fact in find[kind](each.text)}
        assert len(named) == 1, each.text
        assert each.fact not in named, each.text
        assert not each.right(each.text)
        assert (tmp_path / "a" / each.image).is_file()
