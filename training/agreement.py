"""Whether two checkpoint directories read the same conversations as the same token ids.

Compares the ways in which an engine may come to a prompt: our own text through the tokenizer, and the chat template
of the directory. Needs transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Turn
from inference.prompt import BOS, PLACE, picture_place, pictures, render, system_text, user_text

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
    """Where the directories differ over sample conversations and `prompts`, in words; empty when they agree."""
    first, second = load_tokenizer(one), load_tokenizer(other)
    for prompt in (*(Prompt(system, turns, chat="") for turns in _SAMPLES), *prompts):
        text = BOS + render(prompt, [_TOKENS] * len(pictures(prompt)))
        wanted = _ids(first, text)
        asked = prompt.turns[-1].text[:40]
        if _ids(second, text) != wanted:
            return f"the tokenizers of {one} and {other} differ over {asked!r}"
        if second.chat_template and _ids(second, _templated(second, prompt)) != wanted:
            return f"the chat template of {other} differs from our prompt over {asked!r}"
    return ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _templated(tokenizer: Any, prompt: Prompt) -> str:
    messages = [{"role": "system", "content": system_text(prompt.system)}]
    messages += [{"role": turn.role.value, "content": user_text(turn)} for turn in prompt.turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.replace(PLACE, picture_place(_TOKENS))
