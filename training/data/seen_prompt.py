"""Reconstruct the prompt that a model saw: which turns were left out, and where the picture was.

The ledger stores whole conversations, but only a hash of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from inference.chat_format.template import fit, prompt_hash
from inference.messages import Picture, Prompt, PromptTooLong, Role, Turn
from storage.chat_records import Exchange
from storage.learning_records import RatedExchange

Names = Mapping[str, str]
"""The former name of each picture, by its current name. Prompts were hashed with the former names."""

_WINDOW: Final = 16
"""The number of newest exchanges that are tried first; `chat.history_turns` is 8 by default."""

_WINDOW_GROWTH: Final = 4
_EXCHANGE_TOKENS: Final = 4
"""The minimum number of tokens in a question and its answer: the start and end tokens of both."""


def seen_prompt(rated: RatedExchange) -> Prompt:
    """Return the prompt of the exchange, found by its recorded hash.

    If no part of the conversation has the recorded hash, because another user's turns have been erased,
    return the conversation from its newest picture onwards: the model may not have seen the picture together
    with the turns before it.
    """
    return rebuilt_prompt(rated) or _conversation(rated.exchange, _since_newest_picture(rated))


def rebuilt_prompt(rated: RatedExchange) -> Prompt | None:
    """Return the prompt of the exchange, or None if no part of the conversation has the recorded hash."""
    names = _former_names(rated)
    return _find_by_hash(rated, {}) or (_find_by_hash(rated, names) if names else None)


def _since_newest_picture(rated: RatedExchange) -> Sequence[Exchange]:
    if rated.exchange.pictures:
        return ()
    return rated.history[max((index for index, each in enumerate(rated.history) if each.pictures), default=0) :]


def _former_names(rated: RatedExchange) -> Names:
    """Return the former names of pictures re-encoded since the model saw them, by their current names."""
    shown = [each for each in (*rated.history, rated.exchange) if each.former_pictures]
    return {new: old for each in shown for new, old in zip(each.pictures, each.former_pictures, strict=True)}


def _hash(prompt: Prompt, names: Names) -> str:
    if names:
        turns = [
            replace(turn, pictures=tuple(Picture(b"", names.get(each.sha256, each.sha256)) for each in turn.pictures))
            for turn in prompt.turns
        ]
        prompt = replace(prompt, turns=tuple(turns))
    return prompt_hash(prompt)


def _find_by_hash(rated: RatedExchange, names: Names) -> Prompt | None:
    """Return the part of the conversation that has the recorded hash, or None if no part has it.

    The search begins with the newest exchanges and then extends to older ones. Computing a hash reads a
    whole prompt, so trying all parts of a conversation for all its answers would take cubic time: minutes
    for 400 questions about pictures.
    """
    exchange, history = rated.exchange, rated.history
    size = _WINDOW
    while True:
        window = history[-size:]
        if not exchange.pictures and not any(each.pictures for each in window):
            # `fit` moves the newest picture into the part that it keeps.
            window = (*[each for each in history[:-size] if each.pictures][-1:], *window)
        with suppress(PromptTooLong):
            whole = _conversation(exchange, window)
            return fit(whole, 0, lambda shorter: int(_hash(shorter, names) != exchange.prompt_hash))
        if size >= len(history) or size * _EXCHANGE_TOKENS > exchange.prompt_tokens:
            return None
        size *= _WINDOW_GROWTH


def _conversation(exchange: Exchange, history: Sequence[Exchange]) -> Prompt:
    turns = [turn for each in history for turn in (_question(each), Turn(Role.ASSISTANT, each.answer))]
    return Prompt(exchange.system, (*turns, _question(exchange)), chat="")


def _question(exchange: Exchange) -> Turn:
    return Turn(Role.USER, exchange.question, tuple(Picture(b"", sha) for sha in exchange.pictures))
