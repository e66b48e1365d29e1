"""Text out of tokens, piece by piece: no half characters, no stop strings."""

from __future__ import annotations

import pytest

from inference.detokenise import StopStrings, TextStream
from inference.internvl2.tokenizer import load_tokenizer
from inference.tiny import CHECKPOINT

TEXTS = [
    "Wow, two red hearts! ❤️🎉",
    "三个蓝色的圆形。真好看！",
    "👩‍👩‍👧‍👦 family, flag 🇨🇭, ﷽, naïve",
    "  spaces  and\n\nlines ",
    "�",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(text: str) -> None:
    """Every piece is whole characters, and together they are what decoding at once gives."""
    tokenizer = load_tokenizer(CHECKPOINT)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens]
    pieces.append(stream.flush())
    assert "".join(pieces) == (text if text != "�" else ""), "a lone replacement character counts as unfinished"
    assert not any("�" in piece for piece in pieces)


def test_an_unfinished_character_is_left_out() -> None:
    """An answer cut off inside an emoji ends before it."""
    tokenizer = load_tokenizer(CHECKPOINT)
    tokens = tokenizer("ok 𓀀", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token) for token in tokens[:-1]) + stream.flush() == "ok "


def test_broken_bytes_do_not_hold_the_stream_up() -> None:
    """A model that writes bytes which are no text is shown as it is, and what follows comes."""
    tokenizer = load_tokenizer(CHECKPOINT)
    broken = tokenizer("𓀀", add_special_tokens=False)["input_ids"][:1]
    stream = TextStream(tokenizer)
    text = "".join(stream.push(token) for token in broken * 6)
    assert "�" in text
    good = tokenizer(" good", add_special_tokens=False)["input_ids"]
    assert "".join(stream.push(token) for token in good).endswith(" good")


def test_special_tokens_are_not_text() -> None:
    """A special token in an answer shows nothing and costs the next word no space."""
    tokenizer = load_tokenizer(CHECKPOINT)
    tokens = tokenizer("red<box> heart", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, tokens)) + stream.flush() == "red heart"


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        ((), ["a", "b"], "ab", False),
        (("END",), ["some E", "N", "D tail"], "some ", True),
        (("END",), ["some E", "N", "E", "ND"], "some EN", True),
        (("END",), ["some EN"], "some EN", False),
        (("b", "abc"), ["xa", "bc"], "xa", True),
        (("aab",), ["a", "a", "a", "b"], "a", True),
        (("。",), ["好", "。", "再"], "好", True),
    ],
)
def test_stop_strings(stops: tuple[str, ...], pieces: list[str], shown: str, found: bool) -> None:
    """A stop string is found across pieces and never shown; what only began like one is shown in the end."""
    strings = StopStrings(stops)
    text, stopped = "", False
    for piece in pieces:
        more, stopped = strings.push(piece)
        text += more
        if stopped:
            break
        assert not any(stop in text for stop in stops)
    if not stopped:
        text += strings.flush()
    assert (text, stopped) == (shown, found)
