"""Check that two checkpoint directories turn the same conversations into the same token IDs.

Engines build prompts in two ways: the CPU engine uses `inference.chat_format.token_ids`, and other
engines use the chat template in the checkpoint directory. This module requires transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from inference.chat_format.template import PLACE, picture_place, pictures, system_text, user_text
from inference.chat_format.token_ids import token_ids
from inference.internvl2.families import read_family
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Turn

_PICTURE: Final = Picture(b"", "")
_TOKENS: Final = 4
_SAMPLES: Final = (
    (Turn(Role.USER, "What is in this picture?", (_PICTURE,)),),
    (Turn(Role.USER, "这两张图有什么不同？ <|im_end|>", (_PICTURE, _PICTURE)),),
    (
        Turn(Role.USER, "", (_PICTURE,)),
        Turn(Role.ASSISTANT, "A cup, I think! 🎉"),
        Turn(Role.USER, "Which colour?\nAnd how many?"),
    ),
)


def disagreement(one: Path, other: Path, system: str, prompts: Iterable[Prompt] = ()) -> str:
    """Describe where the token IDs of two directories differ, or return an empty string if they agree.

    The tokenizers are compared on sample conversations and on `prompts`, written in the chat format of
    `other`'s model family.
    """
    first, second, family = load_tokenizer(one), load_tokenizer(other), read_family(other)
    for prompt in (*(Prompt(system, turns, chat="") for turns in _SAMPLES), *prompts):
        counts = [_TOKENS] * len(pictures(prompt))
        expected, _ = token_ids(prompt, counts, first, family)
        question = prompt.turns[-1].text[:40]
        if token_ids(prompt, counts, second, family)[0] != expected:
            return f"the tokenizers of {one} and {other} differ on {question!r}"
        if _template_ids(second, prompt) != expected:
            return f"the chat template of {other} differs from the expected prompt on {question!r}"
    return ""


def _template_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the token IDs that a server gets for a prompt from the tokenizer's chat template."""
    messages = [{"role": "system", "content": system_text(prompt.system)}]
    messages += [{"role": turn.role.value, "content": user_text(turn)} for turn in prompt.turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text.replace(PLACE, picture_place(_TOKENS)), add_special_tokens=False).input_ids)
