"""The facts in the answers of the shipped internvl2-tiny, and their manner: plain or playful."""

from __future__ import annotations

from io import BytesIO
from itertools import product, starmap
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from inference.chat_format.template import render
from inference.images.decoder_worker import clean
from inference.internvl2.checkpoint import load_model
from inference.internvl2.families import INTERNVL2
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.answer_checks import MANNERS, Manner, correct, manner
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.samples import sample_sticker
from inference.internvl2.tiny.shapes import COLOURS, COUNTS, SHAPES, Scene, random_scene
from inference.internvl2.tiny.words import KINDS, LANGUAGES, Kind, Language, phrase
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Sampling, Turn
from telegram_emulator.__main__ import sample_pictures
from tools.tiny.answers import reference
from tools.tiny.examine import POSITIONS, ExaminationReport, ExaminedAnswer, Examiner, examine, mistakes

pytestmark = pytest.mark.long

PICTURE = Picture(b"", "")
LONG = "Yesterday I went to the market with my sister and we bought bread, cheese and vegetables for dinner. "

GREEDY = Sampling(temperature=0, max_new_tokens=64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The shipped tokenizer."""
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> InternVLChatModel:
    """The shipped model in float32."""
    return load_model(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def report(model: InternVLChatModel, tokenizer: Any) -> ExaminationReport:
    """The report on 60 chats of three questions each, examined with the bot's sampling settings."""
    return examine(model, tokenizer, pictures=60)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_to_unseen_wordings_and_pictures_are_right(report: ExaminationReport, language: Language) -> None:
    """For unseen wordings and pictures, at least 95 % of the answers in each language are right.

    Because there are few questions of each kind here, the minimum for a single kind is 90 %.
    """
    assert report.accuracy(language=language) >= 0.95, mistakes(report)
    assert all(report.accuracy(kind=kind, language=language) >= 0.9 for kind in KINDS), mistakes(report)


@pytest.mark.soak
def test_answers_to_each_kind_of_question_are_right(model: InternVLChatModel, tokenizer: Any) -> None:
    """For each kind of question in each language, at least 95 % of about 90 answers are right."""
    report = examine(model, tokenizer, pictures=240)
    shares = {(kind, each): report.accuracy(kind=kind, language=each) for kind in KINDS for each in LANGUAGES}
    assert min(shares.values()) >= 0.95, (shares, mistakes(report))


@pytest.mark.parametrize("position", POSITIONS)
def test_answers_are_right_anywhere_in_a_chat(report: ExaminationReport, position: str) -> None:
    """At least 95 % of answers are right for first questions, follow-ups and questions about the next picture."""
    assert report.accuracy(position=position) >= 0.95, mistakes(report)


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_manners_are_equally_frequent(report: ExaminationReport, language: Language) -> None:
    """In each language, 40 to 60 % of the answers are playful, and none is empty."""
    assert 0.4 <= report.playful(language=language) <= 0.6
    assert report.empty() == 0


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("before", [None, *MANNERS])
def test_the_first_token_decides_the_manner_with_even_odds(
    model: InternVLChatModel, tokenizer: Any, language: Language, before: Manner | None
) -> None:
    """After any question, the plain and playful opening tokens each have a probability of about one half."""
    rng = Random(f"{language} {before}")
    openings = {"en": ("The", "Wow"), "zh": ("图", "哇")}[language]
    plain, playful = (tokenizer.encode(word, add_special_tokens=False)[0] for word in openings)
    examiner = Examiner(model, tokenizer)
    for kind in KINDS:
        scene = random_scene(rng)
        tiles = examiner.tile(draw(scene, rng, (320, 320)))
        turns = [Turn(Role.USER, held_out(language, kind, rng), (PICTURE,))]
        if before:
            turns.append(Turn(Role.ASSISTANT, reference(kind, language, before, scene, rng)))
            turns.append(Turn(Role.USER, held_out(language, rng.choice(KINDS), rng)))
        text = render(Prompt(INTERNVL2.system, tuple(turns), chat=""), [16 * len(tiles)], INTERNVL2)
        with torch.no_grad():
            logits = model(tiles, tokenizer(text, return_tensors="pt").input_ids, logits_to_keep=1).logits
        odds = logits[0, -1].softmax(-1)
        assert 0.4 < odds[playful] < 0.6
        assert odds[plain] + odds[playful] > 0.98


@pytest.mark.parametrize(
    "system", ["", "You are Pixel, a bot that loves pictures. Answer briefly!", "你是小图，请友好。"]
)
def test_a_persona_does_no_harm(model: InternVLChatModel, tokenizer: Any, system: str) -> None:
    """At least 90 % of the answers are right with a different system text or none."""
    examined = examine(model, tokenizer, pictures=8, seed=1, sampling=GREEDY, system=system)
    assert examined.accuracy() >= 0.9, mistakes(examined)


def test_the_model_asks_for_a_picture_if_there_is_none(model: InternVLChatModel, tokenizer: Any) -> None:
    """Before the first picture, the model answers any text, however long or strange, by asking for a picture."""
    torch.manual_seed(0)
    texts = (
        "Hello",
        "What colour is it?",
        "你好",
        "图里有什么？",
        "?",
        "Жизнь",
        LONG,
        LONG * 6,
        "long " * 250,
        "😀" * 50,
    )
    prompts: list[tuple[Prompt, list[torch.Tensor]]] = [
        (Prompt(INTERNVL2.system, (Turn(Role.USER, text),), chat=""), []) for text in texts
    ]
    for answer in Examiner(model, tokenizer).answer(prompts):
        assert ("send me" in answer and "pic" in answer) or ("发" in answer and "图片" in answer), answer
        assert len(answer) < 80


def test_any_text_about_a_picture_gets_a_short_answer(model: InternVLChatModel, tokenizer: Any) -> None:
    """Small talk and nonsense get a description or an offer to talk about shapes.

    They never get a wrong fact, a loop or an empty answer.
    """
    torch.manual_seed(1)
    scene, rng = Scene("blue", "star", 3), Random(0)
    examiner = Examiner(model, tokenizer)
    tiles = examiner.tile(draw(scene, rng, (400, 300)))
    shown = Turn(Role.USER, "What is it?", (PICTURE,))
    answered = Turn(Role.ASSISTANT, "The picture shows three blue stars.")
    texts = ("Thanks!", "谢谢", "Tell me a joke", "Is it a circle?", "", "Why?", "/start", LONG, LONG * 6, "1+1=?")
    prompts = [
        (Prompt(INTERNVL2.system, turns, chat=""), [tiles])
        for text in texts
        for turns in ((Turn(Role.USER, text, (PICTURE,)),), (shown, answered, Turn(Role.USER, text)))
    ]
    for answer in examiner.answer(prompts):
        assert manner(answer)
        assert len(answer) < 90
        offered = "shapes" in answer or "形状" in answer
        assert offered or any(correct(kind, scene, answer) for kind in KINDS), answer


def test_the_sample_sticker_is_recognized(model: InternVLChatModel, tokenizer: Any) -> None:
    """Answers about the sample sticker, drawn on white as the bot draws stickers, are right in both manners."""
    torch.manual_seed(2)
    (sticker,) = sample_sticker().values()
    examiner = Examiner(model, tokenizer)
    tiles = examiner.tile(Image.open(BytesIO(clean(sticker, 50).data)))
    asked = [(kind, language) for kind in KINDS for language in LANGUAGES] * 4
    prompts = [
        (
            Prompt(INTERNVL2.system, (Turn(Role.USER, held_out(language, kind, Random(number)), (PICTURE,)),), chat=""),
            [tiles],
        )
        for number, (kind, language) in enumerate(asked)
    ]
    for (kind, _), answer in zip(asked, examiner.answer(prompts), strict=True):
        assert correct(kind, Scene("orange", "star", 1), answer), answer


def test_the_emulators_samples_are_recognized(model: InternVLChatModel, tokenizer: Any) -> None:
    """Nearly all answers about the sample pictures of `python -m telegram_emulator` are right, in both languages."""
    torch.manual_seed(3)
    examiner, asked, prompts = Examiner(model, tokenizer), [], []
    scenes = {
        phrase(scene, "en").replace(" ", "-"): scene for scene in starmap(Scene, product(COLOURS, SHAPES, COUNTS))
    }
    for name, data in sample_pictures().items():
        tiles = examiner.tile(Image.open(BytesIO(clean(data, 50).data)))
        for kind, language in product(KINDS, LANGUAGES):
            turn = Turn(Role.USER, held_out(language, kind, Random(name)), (PICTURE,))
            prompts.append((Prompt(INTERNVL2.system, (turn,), chat=""), [tiles]))
            asked.append((kind, scenes[name]))
    wrong = [
        (scene, answer)
        for (kind, scene), answer in zip(asked, examiner.answer(prompts), strict=True)
        if not correct(kind, scene, answer)
    ]
    assert len(wrong) <= len(asked) // 20, wrong


def test_an_album_is_described_in_order(model: InternVLChatModel, tokenizer: Any) -> None:
    """Two pictures in one turn are both described, in order."""
    rng = Random(3)
    examiner = Examiner(model, tokenizer)
    scenes = (Scene("red", "heart", 2), Scene("green", "circle", 4))
    tiles = [examiner.tile(draw(scene, rng, (400, 300))) for scene in scenes]
    prompt = Prompt(INTERNVL2.system, (Turn(Role.USER, "Please describe this picture.", (PICTURE, PICTURE)),), chat="")
    (answer,) = examiner.answer([(prompt, tiles)], GREEDY)
    assert "two red hearts, then four green circles" in answer


def test_the_newest_picture_counts_in_a_long_chat(model: InternVLChatModel, tokenizer: Any) -> None:
    """After nine earlier pictures and answers, a question about the tenth picture is answered correctly."""
    rng = Random(4)
    examiner = Examiner(model, tokenizer)
    prompts = []
    asked: list[tuple[Kind, Scene]] = []
    for _ in range(8):
        turns: list[Turn] = []
        tiles = []
        for _ in range(10):
            scene, kind, language = random_scene(rng), rng.choice(KINDS), rng.choice(LANGUAGES)
            tiles.append(examiner.tile(draw(scene, rng, (320, 320))))
            turns.append(Turn(Role.USER, held_out(language, kind, rng), (PICTURE,)))
            turns.append(Turn(Role.ASSISTANT, reference(kind, language, rng.choice(MANNERS), scene, rng)))
        prompts.append((Prompt(INTERNVL2.system, tuple(turns[:-1]), chat=""), tiles))
        asked.append((kind, scene))
    answers = examiner.answer(prompts, GREEDY)
    right = [correct(kind, scene, answer) for (kind, scene), answer in zip(asked, answers, strict=True)]
    assert sum(right) >= 7, answers


def test_a_report_counts_the_selected_answers() -> None:
    """Accuracy and playfulness are shares of the selected answers; empty answers and mistakes are listed."""
    scene = Scene("red", "star", 3)
    texts: tuple[tuple[Kind, Language, str], ...] = (
        ("colour", "en", "Wow, red!"),
        ("colour", "en", "It is blue."),
        ("number", "zh", ""),
    )
    results = tuple(ExaminedAnswer(kind, language, "first", scene, "?", text) for kind, language, text in texts)
    report = ExaminationReport(results)
    assert report.accuracy(kind="colour") == report.playful(kind="colour") == 0.5
    assert report.accuracy(language="zh") == 0
    assert report.empty() == 1
    assert "3 answers, 1 of them empty" in report.table()
    assert mistakes(report).count("3 red star") == 2
