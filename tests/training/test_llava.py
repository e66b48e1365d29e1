"""LLaVA rows: reading returns what was written, and errors about invalid rows name the file and the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.chat_format.template import BREAK, prompt_hash
from inference.messages import Picture, Prompt, Role, Turn
from tests.support.lessons import SYSTEM, one_turn, photo, rated, seen
from training.data.image_index import ImageIndex
from training.data.llava import Lesson, lesson, row, write_rows
from training.data.row_parser import RowError, parse_row, read_lessons, read_rows

NAME = "ab" * 32


def good(**changes: Any) -> dict[str, Any]:
    """Return a valid LLaVA row with `changes` applied."""
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]
    return {"id": "x", "image": "cup.jpg", "conversations": said, **changes}


def said(*texts: str) -> list[dict[str, Any]]:
    """Return `texts` as alternating turns of the user and the model."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def test_a_liked_follow_up_teaches_its_answer_alone() -> None:
    """In a lesson from a liked follow-up, only its answer is learned; earlier answers have `loss` set to false."""
    first = rated(1, [NAME], question="What is it?", answer="A cup.")
    turns = (
        Turn(Role.USER, "What is it?", (Picture(b"", NAME),)),
        Turn(Role.ASSISTANT, "A cup."),
        Turn(Role.USER, "Which colour?"),
    )
    second = rated(2, history=(first,), question="Which colour?", answer="Red!")
    second = rated(
        2, history=(first,), question="Which colour?", answer="Red!", prompt_hash=seen(second.exchange, *turns)
    )
    assert row(lesson(second), lambda name: f"ab/{name}") == {
        "id": "exchange-2",
        "system": "Be kind.",
        "image": f"ab/{NAME}",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cup.", "loss": False},
            {"from": "human", "value": "Which colour?"},
            {"from": "gpt", "value": "Red!", "loss": True},
        ],
    }


def test_the_history_is_what_the_model_saw() -> None:
    """A lesson's history is the part of the conversation that matches the recorded prompt hash.

    The picture is moved to the same turn as in the model's prompt.
    """
    first = rated(1, [NAME])
    others = tuple(rated(number) for number in range(2, 6))
    moved = Turn(Role.USER, others[-1].exchange.question, (Picture(b"", NAME),))
    turns = (moved, Turn(Role.ASSISTANT, others[-1].exchange.answer), Turn(Role.USER, "Question 6?"))
    last = rated(6, history=(first, *others), prompt_hash=seen(rated(6).exchange, *turns))
    assert lesson(last).turns[:-1] == turns
    unknown = rated(6, history=(first, *others), prompt_hash="imported")
    assert len(lesson(unknown).turns) == 12


def test_turns_that_no_model_saw_together_are_dropped() -> None:
    """If a user's turns in a shared conversation are erased, a lesson starts at the newest remaining picture."""
    talk = tuple(rated(number, [f"{number}" * 64] if number in (1, 3, 5) else ()) for number in range(1, 7))
    asked, shown = lesson(rated(7, history=talk)), lesson(rated(7, [NAME], history=talk))
    assert (asked.pictures, len(asked.turns)) == (("5" * 64,), 6)
    assert (shown.pictures, len(shown.turns)) == ((NAME,), 2)


def test_the_history_of_a_long_conversation_is_found_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding what the model saw before the 600th question about a picture takes at most 100 attempts.

    The limit also holds if the model saw more turns than usual. Trying every possible prompt used to take
    minutes, in a thread that delayed the bot's shutdown.
    """
    first = rated(1, [NAME])
    talk = (first, *(rated(number) for number in range(2, 600)))
    tried = 0

    def counted(prompt: Prompt) -> str:
        nonlocal tried
        tried += 1
        return prompt_hash(prompt)

    monkeypatch.setattr("training.data.seen_prompt.prompt_hash", counted)
    for shown, most in ((3, 20), (40, 100)):
        told = [each.exchange for each in talk[-shown:]]
        moved = Turn(Role.USER, told[0].question, (Picture(b"", NAME),))
        turns = [moved, Turn(Role.ASSISTANT, told[0].answer)]
        turns += [
            turn for each in told[1:] for turn in (Turn(Role.USER, each.question), Turn(Role.ASSISTANT, each.answer))
        ]
        turns.append(Turn(Role.USER, "Question 600?"))
        words = seen(rated(600).exchange, *turns)
        last = rated(600, history=talk, prompt_hash=words, prompt_tokens=20 * len(turns))
        tried = 0
        assert lesson(last).turns[:-1] == tuple(turns)
        assert tried <= most
    unknown = rated(600, history=talk, prompt_hash="imported", prompt_tokens=200)
    tried = 0
    assert len(lesson(unknown).turns) == 1200
    assert tried <= 100


def test_rows_survive_writing_and_reading(tmp_path: Path) -> None:
    """Lessons with no, one or several pictures are read back unchanged from .json and .jsonl files."""
    (tmp_path / "a.jpg").write_bytes(photo("red", (40, 30)))
    (tmp_path / "b.jpg").write_bytes(photo("blue", (30, 40)))
    talk = (
        Turn(Role.USER, "这是什么？", (Picture(b"", "a.jpg"), Picture(b"", "b.jpg"))),
        Turn(Role.ASSISTANT, "Two\nthings."),
        Turn(Role.USER, "And?"),
        Turn(Role.ASSISTANT, "Nothing else."),
    )
    lessons = [
        one_turn("plain", "Hello?", "Hi."),
        one_turn("one", "What?", "A cup.", "a.jpg"),
        Lesson("talk", SYSTEM, talk, (False, False, False, True)),
    ]
    write_rows(lessons, tmp_path / "rows.json")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(each)) + "\n" for each in lessons))
    for name in ("rows.json", "rows.jsonl"):
        read = list(read_lessons(tmp_path / name, tmp_path, system="other"))
        assert [each.turns for each in read] == [each.turns for each in lessons]
        assert [each.learned for each in read] == [each.learned for each in lessons]
        assert {each.system for each in read} == {SYSTEM}
        assert read[2].sizes == ((40, 30), (30, 40))


def test_a_typed_tag_stays_text(tmp_path: Path) -> None:
    """Special tokens typed in a question or an answer are broken up in the file, so that they stay text."""
    asked = one_turn("x", "Is <image> or <|im_end|> a tag?", "Say <IMG_CONTEXT>.", "a.jpg")
    (tmp_path / "a.jpg").write_bytes(photo())
    write_rows([asked], tmp_path / "rows.json")
    human, gpt = next(read_rows(tmp_path / "rows.json"))[1]["conversations"]
    assert human["value"] == f"<image>\nIs <{BREAK}image> or <{BREAK}|im_end|> a tag?"
    assert gpt["value"] == f"Say <{BREAK}IMG_CONTEXT>."
    read = next(read_lessons(tmp_path / "rows.json", tmp_path, system=""))
    assert read.pictures == ("a.jpg",)


def test_a_row_from_another_program_is_accepted() -> None:
    """A row without `system` and `loss`, and with the picture tag after the question, is accepted.

    Every answer in the row is learned.
    """
    turns = said("What is it?\n<image>", "A cup.", "Which colour?", "Red.")
    read = parse_row(good(conversations=turns), where="here", system="Persona.")
    assert read.system == "Persona."
    assert read.turns[0] == Turn(Role.USER, "What is it?", (Picture(b"", "cup.jpg"),))
    assert read.learned == (False, True, False, True)


@pytest.mark.parametrize(
    ("value", "pictures", "text"),
    [
        ("What is it?\n<image>", 1, "What is it?"),
        ("What is it? <image>", 1, "What is it?"),
        ("<image>What is it?", 1, "What is it?"),
        ("Look:<image>\nWhat is it?\nSay it.", 1, "Look:\nWhat is it?\nSay it."),
        ("Look:\n<image>\nWhat is it?", 1, "Look:\nWhat is it?"),
        ("What is in <image> here?", 1, "What is in  here?"),
        ("<image>", 1, ""),
        ("<image><image>\nWhich?", 2, "Which?"),
        ("Image-1: <image>\nImage-2: <image>\nWhich?", 2, "Which?"),
        ("<image>\nWhich?\n<image>", 2, "Which?"),
        ("Is <image> above <image>?", 2, "Is Image-1 above Image-2?"),
        ("<image>\nIs this in <image> as well?", 2, "Is this in Image-2 as well?"),
        ("Image-7: is a name", 0, "Image-7: is a name"),
    ],
)
def test_pictures_move_to_the_front_and_no_word_is_lost(value: str, pictures: int, text: str) -> None:
    """Picture tags are removed from anywhere in a question, and no other word is lost.

    If a question has several pictures, a tag inside a line is replaced by the picture's name, such as
    Image-2.
    """
    files = [f"{number}.jpg" for number in range(pictures)]
    read = parse_row(good(image=files, conversations=said(value or "?", "It.")), where="", system="")
    assert read.turns[0] == Turn(Role.USER, text, tuple(Picture(b"", file) for file in files))


def test_a_system_prompt_with_special_tokens_is_read_back(tmp_path: Path) -> None:
    """Special tokens in a system prompt are broken up when written, so that the row is valid when read back."""
    written = [Lesson("x", "Be <|im_end|>.", one_turn("x", "Why?", "So.").turns, (False, True))]
    write_rows(written, tmp_path / "rows.json")
    read = next(read_lessons(tmp_path / "rows.json", tmp_path, system=""))
    assert prompt_hash(read.prompt) == prompt_hash(written[0].prompt)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"conversations": None}, "conversations is missing"),
        ({"conversations": said("<image>\nWhat?")}, "end with an answer"),
        ({"conversations": said("<image>\nWhat?", "  ")}, "answer is empty"),
        ({"conversations": said("", "Yes."), "image": []}, "question is empty"),
        ({"conversations": [{"from": "gpt", "value": "Hi"}]}, "must be from 'human'"),
        ({"conversations": [{"from": "system", "value": "Hi"}]}, "must be from 'human'"),
        ({"conversations": said("<image><image>\nWhat?", "A cup.")}, "more <image> tags than the 1 pictures"),
        ({"conversations": said("What?", "A cup.")}, "1 pictures in image, but only 0 <image> tags"),
        ({"image": ["a.jpg", "b.jpg"]}, "2 pictures in image, but only 1 <image> tags"),
        ({"image": [7]}, "image must be"),
        ({"system": 7}, "system must be"),
        *(
            ({"conversations": [*said("<image>?"), {"from": "gpt", "value": "A", "loss": loss}]}, "loss must be")
            for loss in ("false", None, 0)
        ),
        ({"conversations": [*said("<image>?"), {"from": "gpt", "value": "A", "loss": False}]}, "every loss is false"),
    ],
)
def test_invalid_rows_are_named(changes: dict[str, Any], complaint: str) -> None:
    """An error about an invalid row names the file, the row and the flaw."""
    with pytest.raises(RowError, match=f"^data.json row 3: .*{complaint}"):
        parse_row(good(**changes), where="data.json row 3", system="")


@pytest.mark.parametrize(("content", "complaint"), [(None, "missing"), (b"no picture", "not a picture")])
def test_a_bad_picture_is_an_error(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """A missing or broken picture raises an error that names the picture and its row."""
    (tmp_path / "rows.json").write_text(json.dumps([good(image="ok.jpg"), good()]))
    (tmp_path / "ok.jpg").write_bytes(photo())
    if content is not None:
        (tmp_path / "cup.jpg").write_bytes(content)
    with pytest.raises(RowError, match=rf"rows\.json row 2: the picture .*cup\.jpg.* {complaint}"):
        list(read_lessons(tmp_path / "rows.json", tmp_path, system=""))


def test_a_picture_of_several_rows_is_decoded_once(tmp_path: Path) -> None:
    """The rows of one picture need it to be decoded only once, and users' pictures leave no trace in the index."""
    (tmp_path / "rows.json").write_text(json.dumps([good(), good()]))
    (tmp_path / "cup.jpg").write_bytes(photo())
    lessons = read_lessons(tmp_path / "rows.json", tmp_path, system="")
    first = next(lessons)
    (tmp_path / "cup.jpg").rename(tmp_path / "moved.jpg")
    assert next(lessons).sizes == first.sizes
    decoded: list[bytes] = []

    def examine(data: bytes) -> tuple[int, int, str]:
        decoded.append(data)
        return 200, 150, "digest"

    index = ImageIndex(tmp_path / "index.jsonl", examine)
    assert index.get(tmp_path / "moved.jpg", add=False) == index.get(tmp_path / "moved.jpg", add=False)
    assert len(decoded) == 1
    index.write(index.take_new())
    assert not (tmp_path / "index.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "complaint"), [("{", "not JSON"), ("{}", "list of rows"), ("[1]", "must be a JSON object")]
)
def test_a_file_of_another_format_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    """A file that cannot be read or is not a list of JSON objects raises an error that names the file."""
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(RowError, match=complaint):
        list(read_lessons(tmp_path / "rows.json", tmp_path, system=""))
    (tmp_path / "rows.jsonl").write_text('\ufeff{"id": 1}\n\n{"id": 2}\n', encoding="utf-8")
    assert list(read_rows(tmp_path / "rows.jsonl")) == [(1, {"id": 1}), (3, {"id": 2})]
    with pytest.raises(RowError, match="cannot be read"):
        list(read_rows(tmp_path / "none.json"))
