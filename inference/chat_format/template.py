r"""The chat template: the text form of a conversation for every engine, for training and for evaluation.

Tokenization, tiling and transport are done elsewhere. This module uses only the standard library.
InternVL2-2B was trained with this format (conversation.py of the checkpoint, template
"internlm2-chat")::

    <|im_start|>system\n{system}<|im_end|><|im_start|>user\n{pictures}{question}<|im_end|><|im_start|>assistant\n

InternVL2.5 has a newline after each `<|im_end|>`, and models based on Phi-3 use other tokens (see
`inference.internvl2.families`). The tokenizers of InternLM2 and Phi-3 put `<s>` in front of the text. Each
picture is written as `<img><IMG_CONTEXT>×n</img>\n`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final
from unicodedata import normalize

from inference.internvl2.families import ModelFamily
from inference.messages import Picture, Prompt, PromptTooLong, Role, Turn

# --- The tokens ---

BOS: Final = "<s>"
EOS: Final = "</s>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
IMG_START: Final = "<img>"
IMG_END: Final = "</img>"
IMG_CONTEXT: Final = "<IMG_CONTEXT>"

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
"""Every literal that InternLM2's tokenizer reads as one special token."""

STOP_TOKENS: Final = (IM_END, IM_START, "<|end|>", "<|assistant|>", EOS, "<|endoftext|>")
"""The tokens that end an answer: those of the official generation configurations, and the tokenizers' own."""

PLACE: Final = "<image>"
"""The placeholder for a picture in texts that are not tokenized yet (LLaVA files, chat templates)."""

# In addition to InternLM2's literals: those of Phi-3 and Qwen2 to Qwen3 (tokenizer_config.json of the checkpoints), the
# picture placeholders of XTuner, the official code and old lmdeploy versions, and the names of the special IDs in
# InternLM2's SentencePiece file ("[UNUSED_TOKEN_145]" is encoded as ID 92542, which is <|im_end|>).
_LITERAL: Final = re.compile(
    "|".join(map(re.escape, (*SPECIAL_TOKENS, PLACE, "<video>", "<IMAGE_TOKEN>")))
    + r"|<\|(?:system|user|assistant|end|placeholder[1-6])\|>"
    r"|<\|(?:endoftext|(?:object_ref|box|quad|vision)_(?:start|end)|(?:vision|image|video|fim)_pad"
    r"|fim_(?:prefix|middle|suffix)|repo_name|file_sep)\|>"
    r"|</?(?:tool_call|tool_response|think)>|\[UNUSED_TOKEN_"
)

# --- The template ---

BREAK: Final = "\u2060"
"""WORD JOINER, an invisible character that prevents line breaks. Inserted into a special-token literal, it turns the
literal into plain text."""


def harmless(text: str) -> str:
    """Insert an invisible character after the first character of every special-token literal in `text`.

    The result looks the same but is plain text to every tokenizer and server. The function is idempotent.
    """
    return _LITERAL.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)


def special_literal(text: str) -> str:
    """Return the first literal in `text` that a tokenizer or server would read as a special token.

    If there is none, return an empty string.
    """
    found = _LITERAL.search(text)
    return found[0] if found else ""


def system_text(system: str) -> str:
    """Return `system` as used in a prompt: passed through `harmless` and stripped of surrounding whitespace."""
    return harmless(system).strip()


def parts(turn: Turn) -> tuple[str | Picture, ...]:
    """Return the content parts of a turn, texts and pictures in order, for an engine's HTTP API.

    An engine replaces a picture with `<img>…</img>` and a newline. If a turn has several pictures, each is
    preceded by a text with its number ("Image-1: "), because the model was trained with such labels. Texts
    are passed through `harmless` and stripped (XTuner's dataset strips texts too); an empty text is omitted.
    """
    listed: list[str | Picture] = []
    for number, picture in enumerate(turn.pictures, 1):
        if len(turn.pictures) > 1:
            listed.append(f"Image-{number}: ")
        listed.append(picture)
    text = harmless(turn.text).strip()
    return (*listed, text) if text else tuple(listed)


def user_text(turn: Turn) -> str:
    r"""Return the text of a turn with picture placeholders: `<image>\n…`, or `Image-1: <image>\nImage-2: …`.

    An assistant's turn has no pictures and therefore no placeholders.
    """
    return "".join(part if isinstance(part, str) else f"{PLACE}\n" for part in parts(turn))


def picture_place(tokens: int) -> str:
    """Return the text that represents a picture of `tokens` features in a prompt ready for the tokenizer."""
    return f"{IMG_START}{IMG_CONTEXT * tokens}{IMG_END}"


def render(prompt: Prompt, picture_tokens: Sequence[int], family: ModelFamily) -> str:
    """Render a whole prompt as text, up to and including the start of the assistant's answer, without `<s>`.

    Args:
        prompt: The prompt; its last turn is the user's.
        picture_tokens: The number of feature tokens of each picture: its number of tiles times the tokens
            per tile.
        family: The family of the model.

    Raises:
        ValueError: The number of token counts differs from the number of pictures.
    """
    if len(picture_tokens) != len(pictures(prompt)):
        raise ValueError(f"{len(pictures(prompt))} pictures, but {len(picture_tokens)} token counts")
    counts = iter(picture_tokens)
    close = family.end + family.after_turn
    written = [family.opening("system"), system_text(prompt.system), close]
    for turn in prompt.turns:
        written.append(family.opening(turn.role.value))
        written += [part if isinstance(part, str) else picture_place(next(counts)) + "\n" for part in parts(turn)]
        written.append(close)
    return "".join(written) + family.opening("assistant")


def render_answer(answer: str, family: ModelFamily) -> str:
    """Return the text that follows a rendered prompt in a training sample: the answer and its end token."""
    return harmless(answer).strip() + family.end


def pictures(prompt: Prompt) -> tuple[Picture, ...]:
    """Return all pictures of the prompt in order."""
    return tuple(picture for turn in prompt.turns for picture in turn.pictures)


def question_count(prompt: Prompt) -> int:
    """Return the number of the user's turns in a prompt."""
    return sum(turn.role is Role.USER for turn in prompt.turns)


def prompt_hash(prompt: Prompt) -> str:
    """Return the hexadecimal SHA-256 hash of everything that determines the prompt's token IDs.

    The hash covers the system text, the turns and the picture digests, but not the sampling settings or the
    chat's key.
    """
    content = [
        system_text(prompt.system),
        [[turn.role.value, user_text(turn), [picture.sha256 for picture in turn.pictures]] for turn in prompt.turns],
    ]
    return sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


# --- Truncating the history ---


def upper_bound(prompt: Prompt, picture_tokens: int) -> int:
    """Return an upper bound on the prompt's number of tokens, with `picture_tokens` for each picture.

    The bound needs no tokenizer: with byte fallback, a text has at most as many tokens as UTF-8 bytes.
    """
    texts = (harmless(prompt.system), *(user_text(turn) for turn in prompt.turns))
    separators = 13 * (len(texts) + 1)  # two special tokens, the bytes of "assistant", two newlines
    # Qwen's tokenizers normalize a text, which can make it longer.
    sizes = (max(len(text.encode()), len(normalize("NFC", text).encode())) for text in texts)
    return sum(sizes) + separators + len(pictures(prompt)) * (picture_tokens + 2)


def fit(prompt: Prompt, window_tokens: int, count: Callable[[Prompt], int]) -> Prompt:
    """Drop the oldest turns until `count(prompt) <= window_tokens`, always keeping the newest picture.

    The remaining history begins with a user's turn. If the turn with the newest picture is dropped, its
    pictures move to the oldest remaining turn; if not all of them fit, only the last ones that do are moved.

    Args:
        prompt: The whole prompt.
        window_tokens: The engine's context window minus the tokens reserved for the answer.
        count: A function that returns the number of tokens of a prompt.

    Raises:
        PromptTooLong: Even the newest turn alone does not fit, with its own pictures or, if it has none, the
            newest picture.
    """
    for candidate in _shorter(prompt):
        if count(candidate) <= window_tokens:
            return candidate
    raise PromptTooLong(
        f"The question does not fit the model's window of {window_tokens} tokens: shorten it or send fewer pictures."
    )


def _shorter(prompt: Prompt) -> Iterator[Prompt]:
    """Yield the prompt, then successively shorter versions without its oldest turns."""
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


# --- The same template for other software ---


def lmdeploy_template(family: ModelFamily) -> dict[str, object]:
    """Return the fields of lmdeploy's ChatTemplateConfig.

    The same fields make up the JSON file for lmdeploy's option `--chat-template`. A system message in a
    request replaces the official system text (lmdeploy 0.18.0, lmdeploy/model.py,
    BaseChatTemplate.messages2prompt).
    """
    close = family.end + family.after_turn
    return {
        "model_name": "base",
        "meta_instruction": system_text(family.system),
        "system": family.opening("system"),
        "eosys": close,
        "user": family.opening("user"),
        "eoh": close,
        "assistant": family.opening("assistant"),
        "eoa": close,
        "stop_words": [family.end],
    }


def jinja_chat_template(family: ModelFamily, system: str = "") -> str:
    """Return the Jinja chat template of a model family for a Hugging Face tokenizer, with `<s>` if it has one.

    `system`, by default the official system text, is used if the messages include no system message. A
    message's content is a string or a list of parts; a picture part ("image" or "image_url") becomes an
    `<image>` placeholder at the front of its turn. The template inserts texts unchanged, so pass them
    through `harmless` first.
    """
    # A JSON string literal is a valid Jinja string literal, with newlines and quotes escaped.
    system_literal = json.dumps(system_text(system or family.system), ensure_ascii=False)
    close = _in_jinja(family.end + family.after_turn)
    return (
        "{{ bos_token }}"
        "{% if not messages or messages[0]['role'] != 'system' %}"
        "{{ '" + _in_jinja(family.opening("system")) + "' + " + system_literal + " + '" + close + "' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '" + family.before_role + "' + message['role'] + '" + _in_jinja(family.after_role) + "' }}"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}"
        "{% set pictures = message['content'] | selectattr('type', 'in', ['image', 'image_url']) | list %}"
        "{% for picture in pictures %}"
        "{{ ('Image-' + loop.index | string + ': ' if pictures | length > 1 else '') + '" + PLACE + "\\n' }}"
        "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        "{{ '" + close + "' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + _in_jinja(family.opening("assistant")) + "' }}{% endif %}"
    )


def _in_jinja(text: str) -> str:
    return text.replace("\n", "\\n")
