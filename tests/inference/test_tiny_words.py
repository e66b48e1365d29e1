"""Rules for judging internvl2-tiny's answers, its reference answers and the wordings of questions."""

from __future__ import annotations

import re
from itertools import pairwise, product
from random import Random

import pytest

from inference.internvl2.tiny.answer_checks import MANNERS, Manner, NamedFacts, correct, facts, manner
from inference.internvl2.tiny.held_out_questions import DEFAULT_QUESTION, HELD_OUT, held_out
from inference.internvl2.tiny.shapes import COLOURS, COUNTS, SHAPES, Scene, random_scene
from inference.internvl2.tiny.words import KINDS, LANGUAGES, Kind, Language, phrase
from tools.tiny.answers import reference, reference_for_several, request_for_picture, small_talk
from tools.tiny.conversations import TURNS, converse
from tools.tiny.training_questions import off_topic, rambling, trained

RED_STARS = Scene("red", "star", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The colour is red.", "plain"),
        ("图中有三个红色的五角星。", "plain"),
        ("Wow, red!", "playful"),
        ("哇，是红色！", "playful"),
        ("Three red stars 🎉", "playful"),
        ("Stars ✨", "playful"),
        ("🎉", "playful"),
        ("", None),
        (" \n.?", None),
    ],
)
def test_exclamation_marks_and_emoji_make_an_answer_playful(text: str, expected: Manner | None) -> None:
    """An exclamation mark or emoji makes an answer playful; words alone make it plain; otherwise it is neither."""
    assert manner(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Three red stars", NamedFacts(frozenset({"red"}), frozenset({"star"}), frozenset({3}))),
        ("两个蓝色的三角形", NamedFacts(frozenset({"blue"}), frozenset({"triangle"}), frozenset({2}))),
        ("五角星和三角形", NamedFacts(frozenset(), frozenset({"star", "triangle"}), frozenset())),
        ("5 crosses, no circle", NamedFacts(frozenset(), frozenset({"cross", "circle"}), frozenset({5}))),
        ("Someone coloured the startled onesie", NamedFacts(frozenset(), frozenset(), frozenset())),
    ],
)
def test_facts_are_found_as_whole_words(text: str, expected: NamedFacts) -> None:
    """Facts are found only as whole words; the numerals in 三角形 (triangle) and 五角星 (star) are not counts."""
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "right"),
    [
        ("colour", "The colour is red.", True),
        ("colour", "The colour is red or blue.", False),
        ("colour", "The shape is a star.", False),
        ("shape", "哇，是五角星！", True),
        ("shape", "圆形和五角星", False),
        ("number", "There are three.", True),
        ("number", "3", True),
        ("number", "图中有四个。", False),
        ("describe", "Wow, three red stars!", True),
        ("describe", "Red stars", False),
        ("describe", "three red stars, two blue", False),
    ],
)
def test_an_answer_is_correct_with_the_right_fact_and_no_other(kind: Kind, text: str, right: bool) -> None:
    """An answer is wrong if a fact of the kind asked about is missing, incorrect or superfluous."""
    assert correct(kind, RED_STARS, text) is right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("style", MANNERS)
def test_every_reference_answer_has_its_manner_and_its_facts(kind: Kind, language: Language, style: Manner) -> None:
    """A reference answer has the requested manner and is right for its scene, not for scenes with other facts."""
    rng = Random(0)
    for colour, shape, count in product(COLOURS, SHAPES, COUNTS):
        scene = Scene(colour, shape, count)
        text = reference(kind, language, style, scene, rng)
        assert manner(text) == style
        assert correct(kind, scene, text)
        other = random_scene(rng)
        if phrase(other, "en") != phrase(scene, "en"):
            assert not correct("describe", other, text)
        assert bool(re.search(r"[\u4e00-\u9fff]", text)) == (language == "zh")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("style", MANNERS)
def test_answers_in_one_manner_begin_alike(language: Language, style: Manner) -> None:
    """All answers in one manner and language open alike, so the first token decides the manner."""
    rng = Random(0)
    opening = {("en", "plain"): "The ", ("en", "playful"): "Wow", ("zh", "plain"): "图", ("zh", "playful"): "哇"}
    answers = [small_talk(language, style, rng), request_for_picture(language, style, rng)]
    for _ in range(200):
        scenes = [random_scene(rng) for _ in range(rng.randint(1, 3))]
        answers.append(reference_for_several(rng.choice(KINDS), language, style, scenes, rng))
    for answer in answers:
        opened = answer.startswith(opening[language, style])
        assert opened or (answer.startswith("The") and style == "plain" and language == "en")
        assert manner(answer) == style


def test_several_pictures_are_answered_in_order() -> None:
    """The answer about an album gives the requested fact for every picture, in order."""
    answer = reference_for_several("colour", "en", "plain", [RED_STARS, Scene("blue", "heart", 1)], Random(0))
    assert answer == "The pictures show red, then blue."


def test_training_never_asks_in_held_out_wordings() -> None:
    """No training wording equals a held-out one, even ignoring capitals, spaces and punctuation."""
    rng = Random(0)

    def bare(sentence: str) -> str:
        return re.sub(r"\W", "", sentence).lower()

    secret = {bare(sentence) for sentences in HELD_OUT.values() for sentence in sentences}
    for language in LANGUAGES:
        assert bare(DEFAULT_QUESTION[language]) in secret
        for kind in KINDS:
            assert held_out(language, kind, rng) in HELD_OUT[language, kind]
            asked = {bare(trained(language, kind, random_scene(rng), rng)) for _ in range(1500)}
            assert not asked & secret
            assert len(asked) > 400


def test_templates_are_filled_completely() -> None:
    """No brace, bracket or bar of a template remains in a question."""
    rng = Random(1)
    for _ in range(4000):
        language = rng.choice(LANGUAGES)
        question = trained(language, rng.choice(KINDS), random_scene(rng), rng)
        assert not re.search(r"[\[\]{}|_]", question + off_topic(language, rng)), question
        assert question.strip()


def test_rambling_produces_varied_texts() -> None:
    """`rambling` produces texts from empty to very long, including texts in other alphabets such as Cyrillic."""
    rng = Random(2)
    texts = [rambling(rng.choice(LANGUAGES), rng) for _ in range(400)]
    assert "" in texts
    assert max(map(len, texts)) > 800
    assert any("\u0400" < letter < "\u0500" for text in texts for letter in text)


def test_conversations_vary_and_the_manner_is_a_fair_coin() -> None:
    """Chats have the right number of questions, and each answer's manner is independent of the previous one's."""
    rng = Random(3)
    pairs: dict[tuple[Manner | None, Manner | None], int] = {}
    several = before = 0
    for _ in range(1200):
        chat = converse("medium", rng)
        questions = chat.prompt.turns[::2]
        fewest, most = TURNS["medium"]
        assert fewest <= len(questions) <= most
        assert sum(len(turn.pictures) for turn in questions) == len(chat.scenes)
        several += any(len(turn.pictures) > 1 for turn in questions)
        before += not questions[0].pictures
        answers = [turn.text for turn in chat.prompt.turns[1::2]] + [chat.answer]
        for first, second in pairwise(answers):
            pair = manner(first), manner(second)
            pairs[pair] = pairs.get(pair, 0) + 1
    assert several and before
    assert set(pairs) == {(first, second) for first in MANNERS for second in MANNERS}
    assert all(abs(count / sum(pairs.values()) - 0.25) < 0.03 for count in pairs.values())
