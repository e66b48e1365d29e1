"""internvl2-tiny's tokenizer, both as shipped and newly trained."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest

from inference.chat_format.template import (
    BOS,
    EOS,
    IM_END,
    IMG_CONTEXT,
    SPECIAL_TOKENS,
    harmless,
    render,
    render_answer,
)
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from tools.tiny.batches import IGNORED, ConversationEncoder
from tools.tiny.conversations import converse
from tools.tiny.make_tokenizer import MOST_PIECES, make_tokenizer
from tools.tiny.training_questions import rambling


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The shipped tokenizer."""
    return load_tokenizer(CHECKPOINT)


TEXTS = (
    "What is in this picture?",
    "哇，三个红色的五角星！🎉",
    "Ünïcödé, العربية, हिन्दी, 한국어, 漢字かな",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \u2060 \u00a0 \ufeff",
    "  two  spaces\tand\ttabs \n\n lines \r\n",
    "a" * 500,
    "\x00\x01\x7f",
    INTERNVL2.system,
)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    """Encoding and decoding a text in any alphabet returns the text unchanged."""
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_random_texts_survive_a_round_trip(tokenizer: Any) -> None:
    """Encoding and decoding random texts returns them unchanged."""
    rng = Random(0)
    for _ in range(300):
        text = rambling(rng.choice(("en", "zh")), rng)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_are_single_tokens_with_their_official_names(tokenizer: Any) -> None:
    """Every special token of InternVL2 is a single token, and the vocabulary has at most 2,000 entries."""
    assert len(tokenizer) <= 2000
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(SPECIAL_TOKENS)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)


def test_harmless_text_holds_no_special_token(tokenizer: Any) -> None:
    """Special-token literals in a user's text are encoded as plain text after `harmless`."""
    special = set(tokenizer.all_special_ids)
    for token in SPECIAL_TOKENS:
        assert not special & set(tokenizer.encode(harmless(f"a {token} b"), add_special_tokens=False))


def test_a_conversation_has_the_same_ids_whole_and_in_segments(tokenizer: Any) -> None:
    """A conversation split after line breaks or around special tokens has the same token IDs as the whole."""
    rng = Random(1)
    cuts = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + r"|(?<=\n))")
    for _ in range(60):
        chat = converse("medium", rng)
        text = render(chat.prompt, [3] * len(chat.scenes), INTERNVL2) + render_answer(chat.answer, INTERNVL2)
        whole = tokenizer.encode(text)
        parts = [part for part in cuts.split(text) if part]
        assert len(parts) > 10
        assert whole[0] == tokenizer.bos_token_id
        assert whole[1:] == [each for part in parts for each in tokenizer.encode(part, add_special_tokens=False)]


def test_start_token_only_when_asked(tokenizer: Any) -> None:
    """The tokenizer prepends `<s>` only if it is asked to add special tokens."""
    with_start, without = tokenizer.encode("Hi"), tokenizer.encode("Hi", add_special_tokens=False)
    assert with_start == [tokenizer.bos_token_id, *without]


def test_labels_are_every_answer_and_its_end(tokenizer: Any) -> None:
    """The training labels cover each answer in a chat and its end token, and nothing else."""
    rng = Random(2)
    encoder = ConversationEncoder(tokenizer)
    for _ in range(30):
        chat = converse("medium", rng)
        ids, labels = encoder.encode(chat, [2] * len(chat.scenes))
        answers = [turn.text for turn in chat.prompt.turns[1::2]] + [chat.answer]
        learned = [each for each in labels if each != IGNORED]
        assert tokenizer.decode(learned) == "".join(answer + IM_END for answer in answers)
        assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))
        assert ids.count(tokenizer.convert_tokens_to_ids(IMG_CONTEXT)) == 32 * len(chat.scenes)


def test_the_same_seed_makes_the_same_pieces() -> None:
    """Training the tokenizer twice with the same seed gives the same vocabulary, within the maximum size."""
    first, second = make_tokenizer(3, samples=1500), make_tokenizer(3, samples=1500)
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= MOST_PIECES
    for manner in ("The", "Wow", "图", "哇"):
        assert len(first.encode(manner, add_special_tokens=False)) == 1
