"""Training uses the engine's token IDs for a conversation, with labels only for liked answers."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.random_tokenizers import make_phi3_tokenizer
from inference.chat_format.template import IMG_CONTEXT
from inference.engines.cpu.openai_schema import parse
from inference.engines.cpu.preprocessing import Preprocessor
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import FAMILIES, PHI3
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import Picture, Prompt, Role, Turn
from tests.support.lessons import SYSTEM, drawn_lessons, one_turn, photo, shown
from training.data.llava import Lesson
from training.data.row_parser import RowError, parse_row
from training.xtuner.encoding import IGNORE_INDEX, Encoder

WIDE = (640, 300)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with internvl2-tiny's configuration, with each family's chat template, and a tokenizer, in turn."""
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param == PHI3.template:
        make_phi3_tokenizer(folder, 900).save_pretrained(folder)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(CHECKPOINT / name, folder)
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"template": request.param}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    """An encoder with the checkpoint's tokenizer and tiling."""
    return Encoder(checkpoint)


def talk(*answers: str, learned: tuple[int, ...]) -> Lesson:
    """Return a conversation about two pictures, the first of which is wide.

    Args:
        answers: The assistant's answers.
        learned: The indices of the answers to learn.
    """
    turns = [
        Turn(Role.USER, "What is this?", (Picture(b"", "wide"), Picture(b"", "small"))),
        Turn(Role.ASSISTANT, answers[0]),
    ]
    for number, answer in enumerate(answers[1:]):
        turns += [Turn(Role.USER, f"And {number} <|im_end|>?"), Turn(Role.ASSISTANT, answer)]
    marks = tuple(place % 2 == 1 and place // 2 in learned for place in range(len(turns)))
    return shown(Lesson("talk", SYSTEM, tuple(turns), marks), WIDE, (100, 100))


def test_the_prompt_has_the_engines_ids(encoder: Encoder, checkpoint: Path) -> None:
    """A training prompt has the token IDs that the CPU engine computes for the same pictures and texts."""
    lesson = talk("Two stars.", "红色的。", "Wow! 🎉", learned=(2,))
    config = InternVLChatConfig.from_pretrained(checkpoint)
    preprocessor = Preprocessor(config, encoder.tokenizer)
    data = {"wide": photo("red", WIDE), "small": photo("blue", (100, 100))}
    turns = tuple(
        replace(turn, pictures=tuple(Picture.of(data[each.sha256]) for each in turn.pictures))
        for turn in lesson.turns[:-1]
    )
    assert encoder.prompt_ids(lesson) == preprocessor.prepare(Prompt(SYSTEM, turns, chat="")).ids
    assert encoder.encode(lesson).input_ids[: len(encoder.prompt_ids(lesson))] == encoder.prompt_ids(lesson)


ROWS: dict[str, tuple[list[str], list[str]]] = {
    "tag first": (["<image>\nWhat is this?"], ["wide"]),
    "tag behind the question": (["这是什么？\n<image>"], ["small"]),
    "tag inside": (["What is <image> here?"], ["wide"]),
    "two tags behind": (["Which is wider?\n<image>\n<image>"], ["wide", "small"]),
    "numbered": (["Image-1: <image>\nImage-2: <image>\nWhich?"], ["small", "wide"]),
    "no picture": (["How many legs has a cat?  "], []),
    "talk": (["Hi! <image>", "And this?\n<image>", "Which was red?"], ["small", "wide"]),
}
"""Questions of foreign rows, and their pictures."""


@pytest.mark.parametrize("system", ["", SYSTEM, "你是一只猫。"])
@pytest.mark.parametrize("kind", ROWS)
def test_a_foreign_row_has_the_ids_of_the_same_request(
    encoder: Encoder, checkpoint: Path, kind: str, system: str
) -> None:
    """A row of an imported file has the token IDs that the CPU engine computes for the same conversation.

    For the comparison, the engine gets the conversation with the pictures of each message after its text.
    """
    questions, names = ROWS[kind]
    data = {"wide": photo("red", WIDE), "small": photo("blue", (100, 100))}
    said = [each for question in questions for each in (question, "Well.")]
    row = {
        "system": system,
        "image": names,
        "conversations": [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)],
    }
    lesson = shown(parse_row(row, where="", system=""), *({"wide": WIDE, "small": (100, 100)}[name] for name in names))
    files = iter(names)
    messages: list[dict[str, object]] = [{"role": "system", "content": system}]
    for place, text in enumerate(said[:-1]):
        addresses = [
            f"data:image/jpeg;base64,{b64encode(data[next(files)]).decode()}" for _ in range(text.count("<image>"))
        ]
        plain = re.sub(r"(Image-\d+: )?<image>\n?", "", text)
        parts = [
            {"type": "text", "text": plain},
            *({"type": "image_url", "image_url": {"url": url}} for url in addresses),
        ]
        messages.append({"role": ("user", "assistant")[place % 2], "content": parts})
    request = parse(json.dumps({"messages": messages}).encode(), "model", "")
    preprocessor = Preprocessor(InternVLChatConfig.from_pretrained(checkpoint), encoder.tokenizer)
    assert encoder.prompt_ids(lesson) == preprocessor.prepare(request.prompt).ids


def test_only_the_liked_answer_is_learned(encoder: Encoder) -> None:
    """The labels cover the last answer and its end token, but no question, picture or earlier answer."""
    encoded = encoder.encode(talk("Two stars.", "They are red.", learned=(1,)))
    learned = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert (
        encoder.tokenizer.decode(learned, spaces_between_special_tokens=False) == f"They are red.{encoder.family.end}"
    )
    assert encoded.labels[-len(learned) :] == encoded.input_ids[-len(learned) :] == learned


def test_several_answers_can_be_learned(encoder: Encoder) -> None:
    """Several answers of one imported conversation can be learned.

    The token IDs before each learned answer are those that the engine would have.
    """
    lesson = talk("Two stars.", "They are red.", "Bye!", learned=(0, 2))
    encoded = encoder.encode(lesson)
    learned = [label for label in encoded.labels if label != IGNORE_INDEX]
    end = encoder.family.end
    assert encoder.tokenizer.decode(learned, spaces_between_special_tokens=False) == f"Two stars.{end}Bye!{end}"
    first = encoder.prompt_ids(lesson, 1)
    assert encoded.input_ids[: len(first)] == first
    assert encoded.labels[len(first)] != IGNORE_INDEX


def test_picture_tokens_match_the_tiles(encoder: Encoder, tmp_path: Path) -> None:
    """The encoded text has one picture token for each feature of the tiles, including thumbnails."""
    (tmp_path / "wide").write_bytes(photo("red", WIDE))
    (tmp_path / "small").write_bytes(photo("blue", (100, 100)))
    lesson = talk("Two.", learned=(0,))
    encoded = encoder.check(lesson, 10_000, where="here")
    pixels = encoder.pixel_values(lesson.pictures, tmp_path)
    assert pixels is not None
    assert len(pixels) > 2, "the wide picture has several tiles"
    places = encoded.input_ids.count(encoder.tokenizer.convert_tokens_to_ids(IMG_CONTEXT))
    assert places == len(pixels) * encoder.tiling.tokens
    assert encoder.pixel_values((), tmp_path) is None


def test_the_number_of_tiles_can_be_limited(encoder: Encoder) -> None:
    """With a limit of one tile, a wide picture has the picture tokens of one tile."""
    assert Encoder(CHECKPOINT, tiles=1).tiling.count_tokens(*WIDE) == encoder.tiling.tokens
    assert encoder.tiling.count_tokens(*WIDE) > encoder.tiling.tokens


def test_special_tokens_in_texts_are_text(encoder: Encoder) -> None:
    """Special tokens written in a question or an answer add neither special token IDs nor pictures."""
    plain = shown(one_turn("x", "Why?", "So.", "p"), (100, 100))
    odd = shown(one_turn("x", "<image> <|im_start|>system </s>?", "<IMG_CONTEXT><|im_end|> it.", "p"), (100, 100))
    for token in encoder.tokenizer.all_special_tokens:
        number = encoder.tokenizer.convert_tokens_to_ids(token)
        assert encoder.encode(odd).input_ids.count(number) == encoder.encode(plain).input_ids.count(number), token


def test_a_row_that_is_too_long_is_invalid(encoder: Encoder) -> None:
    """A row one token longer than max_length raises RowError, which names the row and both numbers."""
    lesson = talk("Two stars.", learned=(0,))
    length = len(encoder.encode(lesson).input_ids)
    assert len(encoder.check(lesson, length, where="here").input_ids) == length
    with pytest.raises(RowError, match=f"rows.json row 4: {length} tokens .* max_length {length - 1}"):
        encoder.check(lesson, length - 1, where="rows.json row 4")


def test_a_picture_of_unknown_size_is_invalid(encoder: Encoder) -> None:
    """A row with a picture of unknown size raises ValueError, since its number of tokens is unknown."""
    with pytest.raises(ValueError, match="token counts"):
        encoder.check(one_turn("x", "What?", "A cup.", "p"), 1000, where="here")


def test_drawn_pictures_are_decoded_as_the_engine_does(encoder: Encoder, checkpoint: Path, tmp_path: Path) -> None:
    """Training splits a stored picture into exactly the tiles that the engine makes from the same bytes."""
    lesson = drawn_lessons(tmp_path, 1)[0]
    data = (tmp_path / lesson.pictures[0]).read_bytes()
    preprocessor = Preprocessor(InternVLChatConfig.from_pretrained(checkpoint), encoder.tokenizer)
    pixels = encoder.pixel_values(lesson.pictures, tmp_path)
    assert pixels is not None
    assert bool((preprocessor.decode(Picture.of(data), None) == pixels).all())
