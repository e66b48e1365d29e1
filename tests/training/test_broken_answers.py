"""Broken, over-long and uniform answers are detected, and no manner of answering is mistaken for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random

import pytest

from inference.internvl2.tiny.answer_checks import MANNERS
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import LANGUAGES, Kind, Language
from tools.tiny.answers import fact, reference
from training.gate.broken_answers import broken, measure, reasons
from training.gate.evaluated_models import AnsweredQuestions
from training.gate.factual_set import ASKED, FactualQuestion, fact_of

Answerer = Callable[[Kind, Language, Scene, Random], str]

NUMBER = 300
TOKENS = 64

MANNERS_OF_ANSWERING: dict[str, Answerer] = {
    "plain": lambda kind, language, scene, rng: reference(kind, language, "plain", scene, rng),
    "playful": lambda kind, language, scene, rng: reference(kind, language, "playful", scene, rng),
    "both": lambda kind, language, scene, rng: reference(kind, language, rng.choice(MANNERS), scene, rng),
    "one wording": lambda kind, language, scene, _: reference(kind, language, "playful", scene, Random(0)),
    "one word": lambda kind, language, scene, _: fact(kind, language, scene),
    "described": lambda _, language, scene, rng: reference("describe", language, "plain", scene, rng),
    "three sentences": lambda kind, language, scene, rng: " ".join(
        reference(each, language, "playful", scene, rng) for each in (kind, "describe", "colour")
    ),
    "with emoji": lambda kind, language, scene, rng: (
        reference(kind, language, "plain", scene, rng) + " 😂😂😂😂😂😂😂😂"
    ),
}
"""Ways of answering right that people may like."""


def asked(answer: Answerer, number: int = NUMBER, seed: int = 1) -> AnsweredQuestions:
    """Return `number` random questions with the answers that `answer` gives to them."""
    rng, own = Random(0), Random(seed)
    questions, answers = [], []
    for index in range(number):
        kind, language = tuple(product(ASKED, LANGUAGES))[index % 6]
        scene = random_scene(rng)
        questions.append(FactualQuestion("x", f"{kind} {index}", lambda _: True, fact_of(scene, kind), str(index)))
        answers.append(answer(kind, language, scene, own))
    return AnsweredQuestions(tuple(questions), tuple(answers))


@pytest.mark.parametrize("number", [60, NUMBER])
@pytest.mark.parametrize(("live", "liked"), list(product(MANNERS_OF_ANSWERING, MANNERS_OF_ANSWERING)))
def test_no_manner_is_refused(live: str, liked: str, number: int) -> None:
    """A correct manner of answering is never rejected, whatever the live model's manner."""
    before, after = MANNERS_OF_ANSWERING[live], MANNERS_OF_ANSWERING[liked]
    assert reasons(measure(asked(before, number), asked(after, number, seed=2))) == []


def some(share: float, flaw: str) -> Answerer:
    """Return an answerer that gives `flaw` with probability `share`, and a correct plain answer otherwise."""

    def answer(kind: Kind, language: Language, scene: Scene, rng: Random) -> str:
        return flaw if rng.random() < share else reference(kind, language, "plain", scene, rng)

    return answer


@pytest.mark.parametrize("flaw", ["", "red red red red red red red red"])
def test_broken_answers_are_found(flaw: str) -> None:
    """If the live model gives no broken answers, a candidate with four in a hundred is rejected."""
    found = reasons(measure(asked(MANNERS_OF_ANSWERING["plain"]), asked(some(0.04, flaw))))
    assert len(found) == 1 and "are empty or repeat themselves" in found[0]


def test_a_candidate_no_more_broken_than_the_live_model_passes() -> None:
    """A candidate is not rejected for broken answers if the live model gives as many."""
    drift = measure(asked(some(0.1, "")), asked(some(0.1, ""), seed=2))
    assert drift.broken > 10
    assert (reasons(drift) == []) is (drift.broken <= drift.live_broken)
    same = measure(asked(some(0.1, "")), asked(some(0.1, "")))
    assert reasons(same) == []
    worse = measure(asked(some(0.1, "")), asked(some(0.3, "")))
    assert worse.broken_chance < 0.01 and reasons(worse)


def test_few_broken_answers_of_many_may_be_chance() -> None:
    """Three broken answers among 300 may be chance; a candidate with four is rejected."""
    plain = asked(MANNERS_OF_ANSWERING["plain"])
    for number, refused in ((3, False), (4, True)):
        flawed = AnsweredQuestions(plain.questions, ("",) * number + plain.answers[number:])
        assert bool(reasons(measure(plain, flawed))) is refused


def rambling(kind: Kind, language: Language, scene: Scene, rng: Random) -> str:
    """Return an answer that never comes to an end, truncated to the length of about 64 tokens."""
    told = reference(kind, language, "plain", scene, rng)
    while len(told.encode()) < 4 * TOKENS:
        told += " " + reference(rng.choice(ASKED), language, rng.choice(MANNERS), random_scene(rng), rng)
    return told.encode()[: 4 * TOKENS].decode(errors="ignore")


@pytest.mark.parametrize("live", ["plain", "playful", "both", "one word"])
def test_answers_without_an_end_are_found(live: str) -> None:
    """A candidate whose answers never end is rejected.

    The reason says how much longer these answers are than the live model's.
    """
    found = reasons(measure(asked(MANNERS_OF_ANSWERING[live]), asked(rambling)))
    assert len(found) == 1 and "times as long as the live model's" in found[0]


@pytest.mark.parametrize("live", list(MANNERS_OF_ANSWERING))
def test_one_answer_for_all_pictures_is_found(live: str) -> None:
    """A candidate that gives the same answer for all pictures is rejected.

    So is a candidate that gives a single answer to each kind of question in each language.
    """
    for collapsed in (
        lambda *_: "Wow, three red stars! 🎉",
        lambda kind, language, *_: reference(kind, language, "playful", Scene("red", "star", 3), Random(0)),
    ):
        found = reasons(measure(asked(MANNERS_OF_ANSWERING[live]), asked(collapsed)))
        assert len(found) == 1 and "different answers to 300 questions, the live model" in found[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", True),
        ("!? …", True),
        ("A red cup.", False),
        ("Wow, wow, so red! Ha ha ha!", False),
        ("哈哈哈哈哈哈，红色！", False),
        ("| a | b |\n|-----|-----|\n| 1 | 2 |\n---------------------", False),
        ("red red red red red red red", True),
        ("It is a cup. It is a cup. It is a cup. It is a cup. It is a cup.", True),
        ("aaaaaaaaaaaaaaaaaaaaaa", True),
        ("是的，是的，是的，是的，是的，是的，是的，是的", True),
        ("A long answer that was cut before it could say all it", False),
    ],
)
def test_empty_and_looping_answers_are_broken(answer: str, expected: bool) -> None:
    """Empty and looping answers count as broken; laughter and tables do not."""
    assert broken(answer) is expected
