"""The sentencepiece tokenizer against the official one, and which tokenizer a directory yields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.internvl2.tokenizer import END_TOKENS, PICTURE_TOKEN, load_tokenizer, token_id

FOLDER = Path(__file__).parents[1] / "golden" / "internlm2_tokenizer"
GOLDEN = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))


def test_ids_are_the_official_ones() -> None:
    """Every text, special tokens and odd characters in it included, gets the official ids."""
    tokenizer = load_tokenizer(FOLDER)
    for case in GOLDEN["texts"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"], case["text"]


def test_decoded_texts_are_the_official_ones() -> None:
    """Ids decode to the official text, with special tokens and without."""
    tokenizer = load_tokenizer(FOLDER)
    for case in GOLDEN["texts"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["skipped"]


def test_vocabulary_is_counted_as_the_official_one() -> None:
    """Sizes agree, and a token added later gets the id it would officially get."""
    tokenizer = load_tokenizer(FOLDER)
    assert (tokenizer.vocab_size, len(tokenizer)) == (GOLDEN["vocab_size"], GOLDEN["length"])
    tokenizer.add_tokens(["<later>"])
    assert tokenizer.convert_tokens_to_ids("<later>") == GOLDEN["later"]


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    """A tokenizer written to a directory and loaded again gives the same ids."""
    load_tokenizer(FOLDER).save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for case in GOLDEN["texts"]:
        assert again(case["text"])["input_ids"] == case["ids"]


def test_special_tokens_are_asked_for() -> None:
    """Ids of special tokens come from the tokenizer, and one it lacks is an error that names it."""
    tokenizer = load_tokenizer(FOLDER)
    for token in (*END_TOKENS, PICTURE_TOKEN):
        assert tokenizer.convert_ids_to_tokens(token_id(tokenizer, token)) == token
    with pytest.raises(ValueError, match=r"<\|nothing\|>"):
        token_id(tokenizer, "<|nothing|>")


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    """A directory without a tokenizer is an error that names the files looked for."""
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)
