"""The SentencePiece tokenizer compared with the official one, and loading a tokenizer from a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.internvl2.tokenizer import END_TOKENS, PICTURE_TOKEN, load_tokenizer, token_id

FOLDER = Path(__file__).parents[1] / "golden" / "internlm2_tokenizer"
GOLDEN = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))


def test_ids_equal_the_official_ones() -> None:
    """Token IDs equal the official ones for every text, including special tokens and unusual characters."""
    tokenizer = load_tokenizer(FOLDER)
    for case in GOLDEN["texts"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"], case["text"]


def test_decoded_texts_equal_the_official_ones() -> None:
    """Decoded texts equal the official ones, with and without special tokens."""
    tokenizer = load_tokenizer(FOLDER)
    for case in GOLDEN["texts"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["skipped"]


def test_the_vocabulary_equals_the_official_one() -> None:
    """The vocabulary has the official size, and a token added later gets the official ID."""
    tokenizer = load_tokenizer(FOLDER)
    assert (tokenizer.vocab_size, len(tokenizer)) == (GOLDEN["vocab_size"], GOLDEN["length"])
    tokenizer.add_tokens(["<later>"])
    assert tokenizer.convert_tokens_to_ids("<later>") == GOLDEN["later"]


def test_a_saved_tokenizer_is_unchanged(tmp_path: Path) -> None:
    """A tokenizer that is saved and loaded again gives the same token IDs."""
    load_tokenizer(FOLDER).save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for case in GOLDEN["texts"]:
        assert again(case["text"])["input_ids"] == case["ids"]


def test_special_token_ids() -> None:
    """A special token's ID comes from the tokenizer, and a missing token raises an error that names the token."""
    tokenizer = load_tokenizer(FOLDER)
    for token in (*END_TOKENS[:2], PICTURE_TOKEN):
        assert tokenizer.convert_ids_to_tokens(token_id(tokenizer, token)) == token
    with pytest.raises(ValueError, match=r"<\|nothing\|>"):
        token_id(tokenizer, "<|nothing|>")


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    """Loading a tokenizer from a directory that has none raises an error that names the missing files."""
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: tokenizer\.json, tokenizer\.model, or vocab"):
        load_tokenizer(tmp_path)
