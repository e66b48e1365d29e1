"""THE prompt: how a conversation becomes the one string every engine, the trainer and the evaluation read.

Knows InternVL2's chat format (system text, separators without newlines, picture places), which literals a
tokenizer would turn into special tokens, and how the same format is written down for lmdeploy and Hugging
Face. Leaves tokenisation, tiling and transport to others; runs on the standard library.

The format, as InternVL2-2B was trained (conversation.py of the checkpoint, template "internlm2-chat")::

    <|im_start|>system\\n{system}<|im_end|><|im_start|>user\\n{places}{question}<|im_end|><|im_start|>assistant\\n

A tokenizer puts `<s>` in front. A picture's place is `<img><IMG_CONTEXT>×n</img>\\n`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from inference.messages import Picture, Prompt, PromptTooLong, Role, Turn

SYSTEM: Final = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
"""The official system text: what the model saw in training when no persona was given."""

BOS: Final = "<s>"
EOS: Final = "</s>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
IMG_START: Final = "<img>"
IMG_END: Final = "</img>"
IMG_CONTEXT: Final = "<IMG_CONTEXT>"
PLACE: Final = "<image>"
"""Stands for one whole picture in texts that are not tokenised yet (LLaVA files, templates)."""

SPECIAL_TOKENS: Final = (
    "<unk>",
    BOS,
    EOS,
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    IM_END,
    IM_START,
    IMG_START,
    IMG_END,
    IMG_CONTEXT,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
"""Every literal that InternVL2's tokenizer reads as one special token."""

STOP_TOKENS: Final = (IM_END, IM_START, EOS)
"""What ends an answer: the official generation config's two, and the tokenizer's own end."""

BREAK: Final = "\u2060"
"""WORD JOINER: invisible, joins no characters, allows no line break; put into a literal, it breaks it."""

# Beside the tokenizer's own: XTuner's and the official code's place of a picture, lmdeploy's old one, and the
# names under which the special ids stand in InternLM2's SentencePiece file ("[UNUSED_TOKEN_145]" is encoded
# as id 92542, that is <|im_end|>).
_LITERAL: Final = re.compile(
    "|".join(map(re.escape, (*SPECIAL_TOKENS, PLACE, "<video>", "<IMAGE_TOKEN>"))) + r"|\[UNUSED_TOKEN_"
)

_SYSTEM_OPEN: Final = f"{IM_START}system\n"
_USER_OPEN: Final = f"{IM_START}user\n"
_ASSISTANT_OPEN: Final = f"{IM_START}assistant\n"


def harmless(text: str) -> str:
    """Break every special-token literal in `text` with one invisible character after its first.

    What is left reads the same to people and is plain text to every tokenizer and server. Idempotent.
    """
    return _LITERAL.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)


def special_literal(text: str) -> str:
    """The first literal in `text` that a tokenizer or a server would read as a special token; empty without one."""
    found = _LITERAL.search(text)
    return found[0] if found else ""


def system_text(system: str) -> str:
    """The persona as it stands in a prompt: harmless, without outer white space."""
    return harmless(system).strip()


def parts(turn: Turn) -> tuple[str | Picture, ...]:
    """The turn as an engine's HTTP interface wants it: texts and pictures in the order they are read.

    An engine replaces a picture by `<img>…</img>` and a newline; so several pictures get their number as a
    text before them ("Image-1: "), one gets none. Texts are harmless and without outer white space (XTuner's
    dataset strips it too); an empty one is left out.
    """
    listed: list[str | Picture] = []
    for number, picture in enumerate(turn.pictures, 1):
        if len(turn.pictures) > 1:
            listed.append(f"Image-{number}: ")
        listed.append(picture)
    text = harmless(turn.text).strip()
    return (*listed, text) if text else tuple(listed)


def user_text(turn: Turn) -> str:
    """The turn's text with a place for each picture: `<image>\\n…`, or `Image-1: <image>\\nImage-2: …`.

    Also right for an assistant's turn, which has no pictures.
    """
    return "".join(part if isinstance(part, str) else f"{PLACE}\n" for part in parts(turn))


def picture_place(tokens: int) -> str:
    """What stands for a picture of `tokens` features in a prompt that is ready for the tokenizer."""
    return f"{IMG_START}{IMG_CONTEXT * tokens}{IMG_END}"


def render(prompt: Prompt, picture_tokens: Sequence[int]) -> str:
    """The whole prompt up to and including the opening of the assistant's answer, without `<s>`.

    `picture_tokens` has one number for each picture of the prompt, in order: its feature tokens, tiles times
    tokens a tile. A turn of the assistant is closed, the last turn is expected to be the user's.
    Raises ValueError when the numbers do not match the pictures.
    """
    if len(picture_tokens) != len(pictures(prompt)):
        raise ValueError(f"{len(pictures(prompt))} pictures, but {len(picture_tokens)} token counts")
    counts = iter(picture_tokens)
    written = [_SYSTEM_OPEN, system_text(prompt.system), IM_END]
    for turn in prompt.turns:
        written.append(_USER_OPEN if turn.role is Role.USER else _ASSISTANT_OPEN)
        written += [part if isinstance(part, str) else picture_place(next(counts)) + "\n" for part in parts(turn)]
        written.append(IM_END)
    return "".join(written) + _ASSISTANT_OPEN


def render_answer(answer: str) -> str:
    """What follows `render` in a training sample: the answer and its end."""
    return harmless(answer).strip() + IM_END


def pictures(prompt: Prompt) -> tuple[Picture, ...]:
    """All pictures of the prompt in the order in which the model reads them."""
    return tuple(picture for turn in prompt.turns for picture in turn.pictures)


def prompt_hash(prompt: Prompt) -> str:
    """Hex sha256 over all that decides the prompt's token ids: system, turns, picture digests.

    Neither sampling nor the chat's key takes part; they are recorded apart.
    """
    content = [
        system_text(prompt.system),
        [[turn.role.value, user_text(turn), [picture.sha256 for picture in turn.pictures]] for turn in prompt.turns],
    ]
    return sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def upper_bound(prompt: Prompt, picture_tokens: int) -> int:
    """No engine counts more prompt tokens than this, each picture taken at `picture_tokens`.

    A text has at most as many tokens as UTF-8 bytes (byte fallback); for a caller without a tokenizer.
    """
    texts = (harmless(prompt.system), *(user_text(turn) for turn in prompt.turns))
    separators = 8 * (len(texts) + 1)
    return sum(len(text.encode()) for text in texts) + separators + len(pictures(prompt)) * (picture_tokens + 2)


def fit(prompt: Prompt, window_tokens: int, count: Callable[[Prompt], int]) -> Prompt:
    """Cut the history so that `count(prompt) <= window_tokens`, the newest picture always kept.

    `window_tokens` is the engine's window less the room left for the answer. Oldest turns go first, so that
    the rest begins with a user's turn. When the newest picture would go with its turn, its turn's pictures
    move to the oldest turn kept; of an album that is too large to move whole, the last pictures.
    Raises PromptTooLong when the newest turn does not fit with its own pictures or with the newest one.
    """
    for candidate in _shorter(prompt):
        if count(candidate) <= window_tokens:
            return candidate
    raise PromptTooLong(
        f"The question does not fit the model's window of {window_tokens} tokens: shorten it or send fewer pictures."
    )


def _shorter(prompt: Prompt) -> Iterator[Prompt]:
    """The prompt, then what is left of it when more and more of the oldest is cut."""
    yield prompt
    openings = [index for index, turn in enumerate(prompt.turns) if turn.role is Role.USER]
    for opening in openings[1:]:
        kept = prompt.turns[opening:]
        if any(turn.pictures for turn in kept):
            yield replace(prompt, turns=kept)
            continue
        moved = next((turn.pictures for turn in reversed(prompt.turns[:opening]) if turn.pictures), ())
        for first in range(max(len(moved), 1)):
            head = replace(kept[0], pictures=moved[first:])
            yield replace(prompt, turns=(head, *kept[1:]))


def lmdeploy_template(system: str = SYSTEM) -> dict[str, object]:
    """The fields of lmdeploy's ChatTemplateConfig; as a JSON file they are its `--chat-template`.

    A system message in a request replaces `system`. Source: lmdeploy 0.18.0, lmdeploy/model.py,
    BaseChatTemplate.messages2prompt.
    """
    return {
        "model_name": "base",
        "meta_instruction": system_text(system),
        "system": _SYSTEM_OPEN,
        "eosys": IM_END,
        "user": _USER_OPEN,
        "eoh": IM_END,
        "assistant": _ASSISTANT_OPEN,
        "eoa": IM_END,
        "stop_words": [IM_END],
    }


def jinja_chat_template(system: str = SYSTEM) -> str:
    """The tokenizer's chat template for Hugging Face: the same format, `<s>` included.

    `system` speaks when the messages have no system message of their own. A content is a text or a list of
    parts; a picture part ("image" or "image_url") becomes a `<image>` place at the front of its turn. The
    template trusts its texts: make them `harmless` first.
    """
    # A JSON string literal is a Jinja string literal as well, newlines and quotes escaped.
    persona = json.dumps(system_text(system), ensure_ascii=False)
    return (
        "{{ bos_token }}"
        "{% if not messages or messages[0]['role'] != 'system' %}"
        "{{ '" + _in_jinja(_SYSTEM_OPEN) + "' + " + persona + " + '" + IM_END + "' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '" + IM_START + "' + message['role'] + '\\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}"
        "{% set pictures = message['content'] | selectattr('type', 'in', ['image', 'image_url']) | list %}"
        "{% for picture in pictures %}"
        "{{ ('Image-' + loop.index | string + ': ' if pictures | length > 1 else '') + '" + PLACE + "\\n' }}"
        "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        "{{ '" + IM_END + "' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + _in_jinja(_ASSISTANT_OPEN) + "' }}{% endif %}"
    )


def _in_jinja(text: str) -> str:
    return text.replace("\n", "\\n")
