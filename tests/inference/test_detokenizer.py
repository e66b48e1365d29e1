"""Incremental detokenization never yields half a character."""

from __future__ import annotations

from typing import Any

import pytest

from inference.engines.detokenizer import TextStream
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer, text_decoder
from tests.inference.test_internvl2_tokenizer import FOLDER

TEXTS = [
    "Wow, two red hearts! ❤️🎉",
    "三个蓝色的圆形。真好看！",
    "👩‍👩‍👧‍👦 family, flag 🇨🇭, ﷽, naïve",
    "spaces  and\n\nlines ",
]


@pytest.fixture(params=[CHECKPOINT, FOLDER], ids=["byte-level BPE", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of either kind: internvl2-tiny's tokenizer.json or InternLM2's tokenizer.model."""
    return load_tokenizer(request.param)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    """Each piece has only whole characters, and the joined pieces equal the text decoded in one go."""
    tokens = ids(tokenizer, text)
    stream = TextStream(text_decoder(tokenizer))
    pieces = [stream.push(token) for token in tokens]
    pieces.append(stream.flush())
    assert "".join(pieces) == text == tokenizer.decode(tokens)
    assert not any("�" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 3


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("number", [2, 3, 7])
def test_tokens_may_come_in_groups(tokenizer: Any, text: str, number: int) -> None:
    """Several tokens pushed at once give the same text, and incomplete characters are held back."""
    tokens = ids(tokenizer, text)
    stream = TextStream(text_decoder(tokenizer))
    pieces = [stream.push(*tokens[first : first + number]) for first in range(0, len(tokens), number)]
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_an_unfinished_character_is_left_out(tokenizer: Any) -> None:
    """An answer that is truncated inside a character ends before that character."""
    stream = TextStream(text_decoder(tokenizer))
    assert "".join(map(stream.push, ids(tokenizer, "ok 𓀀")[:-1])) + stream.flush() == "ok "


def test_invalid_bytes_do_not_block_the_stream(tokenizer: Any) -> None:
    """Invalid bytes become replacement characters, and the text after them is decoded."""
    broken = ids(tokenizer, "𓀀")[-1]
    stream = TextStream(text_decoder(tokenizer))
    assert "�" in "".join(stream.push(broken) for _ in range(8))
    assert "".join(map(stream.push, ids(tokenizer, "a good word"))).endswith(" good word")


def test_special_tokens_are_not_text(tokenizer: Any) -> None:
    """A special token adds no text, and the text after it is the same as when all tokens are decoded together."""
    tokens = ids(tokenizer, "red</box> heart</box> here")
    stream = TextStream(text_decoder(tokenizer))
    text = "".join(map(stream.push, tokens)) + stream.flush()
    assert text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert "box" not in text
