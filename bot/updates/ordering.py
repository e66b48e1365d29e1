"""Which updates must be handled one after the other: the lane of an update.

Standard library only. A private chat is one lane, in a group each member has one; an edited message waits for what it
was edited in. Taps on buttons and reactions have a lane of their own for each person, and so have a tap that asks for
another answer, /stop, the commands that only look, those that steer the training and the models, what cancels a run,
and what takes nodes out of service: none waits for an answer that is just being streamed, and only what steers waits
for a change of model, which may take minutes. Every lane ends in a colon and its person's id, by which the ledger finds
what came from somebody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_LOOKING: Final = ("help", "model", "status", "models", "schedule", "stats", "privacy", "delete_my_data")
_STEERING: Final = ("retrain", "promote", "rollback")
_NODES: Final = ("drain", "undrain")

QUICK_COMMANDS: Final = {
    **dict.fromkeys(_LOOKING, "looks"),
    **dict.fromkeys(_STEERING, "commands"),
    **dict.fromkeys(_NODES, "nodes"),
    "cancel": "cancels",
    "broadcast": "broadcast",
}
"""Commands that have nothing to do with the conversation in whose chat they are sent, each with its kind of lane."""

_TAPS: Final = {
    **dict.fromkeys(("again", "asks"), "answers"),
    **{each: QUICK_COMMANDS[each] for each in (*_STEERING, *_NODES, "cancel")},
}
"""Taps for which others must not wait, by how their callback data begins: as long as an answer takes, or a command."""


_MOST_NUMBER: Final = 2**63 - 1
"""SQLite's integers have 64 bits; Telegram promises at most 52 (https://core.telegram.org/bots/api#user)."""

_MOST_DEPTH: Final = 100


def is_update(raw: object) -> bool:
    """Return whether JSON is an update that can be stored: an object with a usable `update_id`, not nested too deep."""
    if not isinstance(raw, dict):
        return False
    number = raw.get("update_id")
    if type(number) is not int or not 0 <= number <= _MOST_NUMBER:  # a bool is an int
        return False
    level: list[Any] = [raw]
    for _ in range(_MOST_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return True
    return False


def lane_of(raw: dict[str, Any]) -> str:
    """The lane of an update as Telegram sent it. Updates of unknown shape share one."""
    callback = raw.get("callback_query")
    if isinstance(callback, dict):
        kind = _TAPS.get(str(callback.get("data")).partition(":")[0], "taps")
        return f"{kind}:{_id(callback.get('from'))}"
    reaction = raw.get("message_reaction")
    if isinstance(reaction, dict):
        return f"taps:{_id(reaction.get('user'))}"
    message = raw.get("message", raw.get("edited_message"))
    if not isinstance(message, dict):
        return "other"
    chat, sender = message.get("chat"), _id(message.get("from"))
    command = command_of(message.get("text"))
    if command in QUICK_COMMANDS:
        return f"{QUICK_COMMANDS[command]}:{sender}"
    if command == "stop":
        return f"stop:{_id(chat)}:{sender}"
    if isinstance(chat, dict) and chat.get("type") == "private":
        return f"chat:{_id(chat)}"
    return f"chat:{_id(chat)}:{sender}"


def command_of(text: object) -> str:
    """The command that a message begins with ("/Status@bot x" is "status"), empty for any other text."""
    if not isinstance(text, str) or not text.startswith("/"):
        return ""
    word = text[1:].split(maxsplit=1)[:1]
    return word[0].partition("@")[0].lower() if word and not text[1:2].isspace() else ""


def _id(owner: object) -> int:
    number = owner.get("id") if isinstance(owner, dict) else None
    return number if isinstance(number, int) else 0


def _children(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
