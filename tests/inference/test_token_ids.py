"""Token IDs of a prompt: the tokenizer's own, with picture positions and no special tokens from user text."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from inference.chat_format.template import BREAK, SPECIAL_TOKENS, harmless, render
from inference.chat_format.token_ids import token_ids
from inference.internvl2.families import FAMILIES, INTERNVL2, ModelFamily
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Turn
from tests.inference.test_internvl2_tokenizer import FOLDER

CAT, DOG = Picture.of(b"cat"), Picture.of(b"dog")
TALK = Prompt(
    "你是一个助手。Be kind.",
    (
        Turn(Role.USER, "What is it? 这是什么？", (CAT,)),
        Turn(Role.ASSISTANT, "A cat. 🐈"),
        Turn(Role.USER, "And these?", (DOG, CAT)),
    ),
    "chat",
)


@pytest.fixture(params=[CHECKPOINT, FOLDER], ids=["byte-level BPE", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of either kind: internvl2-tiny's tokenizer.json or InternLM2's tokenizer.model."""
    return load_tokenizer(request.param)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_ids_are_those_of_the_rendered_text(tokenizer: Any, family: ModelFamily) -> None:
    """Repeating picture tokens after tokenization gives the same IDs as tokenizing the rendered text."""
    ids, spans = token_ids(TALK, [16, 80, 5], tokenizer, family)
    assert ids == tokenizer(render(TALK, [16, 80, 5], family))["input_ids"]
    context, start, end = tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<img>", "</img>"])
    assert [len(span) for span in spans] == [16, 80, 5]
    for span in spans:
        assert ids[span.start - 1 : span.stop + 1] == [start, *[context] * len(span), end]
    assert ids.count(context) == 101


def test_a_prompt_without_pictures_has_no_spans(tokenizer: Any) -> None:
    """A prompt without pictures has the token IDs of the rendered text and no picture positions."""
    prompt = Prompt("", (Turn(Role.USER, "Hi"),), "chat")
    assert token_ids(prompt, [], tokenizer, INTERNVL2) == (tokenizer(render(prompt, [], INTERNVL2))["input_ids"], [])


@pytest.mark.parametrize("literal", [*SPECIAL_TOKENS, "[UNUSED_TOKEN_145]"])
def test_a_special_token_literal_in_a_text_is_plain_text(tokenizer: Any, literal: str) -> None:
    """After `harmless`, a special-token literal is encoded as plain pieces and decodes to the same text."""
    broken = harmless(f"a {literal} b")
    ids = tokenizer(broken, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert tokenizer.decode(ids).replace(BREAK, "") == f"a {literal} b"


def test_a_tokenizer_without_bos_is_refused() -> None:
    """A tokenizer that does not add `<s>` is refused, because its prompts would differ from those in training."""
    tokenizer = load_tokenizer(CHECKPOINT)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|im_start|>")
    with pytest.raises(ValueError, match="InternVL prompts: <s>"):
        token_ids(TALK, [1, 1, 1], bare, INTERNVL2)
