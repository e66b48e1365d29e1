"""What a model saw before it gave an answer: how much of the conversation, and where its picture stood.

The ledger has whole conversations, and of each prompt a hash. Knows how prompts are cut; leaves the rest to `prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from inference.chat_format.template import fit, prompt_hash
from inference.messages import Picture, Prompt, PromptTooLong, Role, Turn
from storage.records import Exchange, RatedExchange

Names = Mapping[str, str]
"""What pictures are called in a prompt's hash, where that is not what they are called now."""

_WINDOW: Final = 16
"""How many of the newest exchanges are looked through first for what the model saw; the default shows it 8."""

_WIDER: Final = 4
_EXCHANGE_TOKENS: Final = 4
"""A question and an answer have at least so many tokens: the begin and the end of each."""


def as_seen(rated: RatedExchange) -> Prompt:
    """The prompt of the exchange, found by its recorded hash.

    Where none has it, because what somebody else said in between is gone, the conversation from its newest picture on:
    what is before that no model may have seen with it.
    """
    names = _former_names(rated)
    found = _with_its_hash(rated, {}) or (_with_its_hash(rated, names) if names else None)
    return found or _conversation(rated.exchange, _since_newest_picture(rated))


def _since_newest_picture(rated: RatedExchange) -> Sequence[Exchange]:
    if rated.exchange.pictures:
        return ()
    return rated.history[max((place for place, each in enumerate(rated.history) if each.pictures), default=0) :]


def _former_names(rated: RatedExchange) -> Names:
    """The former name of each picture that was cleaned after the model had seen it."""
    shown = [each for each in (*rated.history, rated.exchange) if each.formerly]
    return {new: old for each in shown for new, old in zip(each.pictures, each.formerly, strict=True)}


def _hash(prompt: Prompt, names: Names) -> str:
    if names:
        turns = [
            replace(turn, pictures=tuple(Picture(b"", names.get(each.sha256, each.sha256)) for each in turn.pictures))
            for turn in prompt.turns
        ]
        prompt = replace(prompt, turns=tuple(turns))
    return prompt_hash(prompt)


def _with_its_hash(rated: RatedExchange, names: Names) -> Prompt | None:
    """The prompt with the recorded hash, None if no cut of the conversation has it.

    Looked for among the newest exchanges first, then among more: every hash reads the whole prompt, so trying all cuts
    of a long talk for all its answers takes the cube of its length, which is minutes for 400 questions about pictures.
    """
    exchange, history = rated.exchange, rated.history
    size = _WINDOW
    while True:
        window = history[-size:]
        if not exchange.pictures and not any(each.pictures for each in window):
            # A cut moves the newest picture to what it keeps.
            window = (*[each for each in history[:-size] if each.pictures][-1:], *window)
        with suppress(PromptTooLong):
            whole = _conversation(exchange, window)
            return fit(whole, 0, lambda shorter: int(_hash(shorter, names) != exchange.prompt_hash))
        if size >= len(history) or size * _EXCHANGE_TOKENS > exchange.prompt_tokens:
            return None
        size *= _WIDER


def _conversation(exchange: Exchange, history: Sequence[Exchange]) -> Prompt:
    turns = [turn for each in history for turn in (_question(each), Turn(Role.ASSISTANT, each.answer))]
    return Prompt(exchange.system, (*turns, _question(exchange)), chat="")


def _question(exchange: Exchange) -> Turn:
    return Turn(Role.USER, exchange.question, tuple(Picture(b"", sha) for sha in exchange.pictures))
