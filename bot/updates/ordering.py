"""Assignment of updates to lanes; the updates of one lane are handled one after another.

A private chat is one lane; in a group, each member has a lane, and so has each person who asks the bot as
a guest. An edited message is in the lane of the original. Button taps, reactions, /stop and other quick
commands have separate lanes for each user, so that they need not wait for an answer in flight. /retrain,
/promote and /rollback share a lane of their own, so that nothing else has to wait for a model
switch, which may take minutes. Each lane's name ends in a colon and the user's ID, so that the ledger can
find a user's updates (`*:{user}`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_READ_ONLY: Final = ("help", "model", "status", "models", "review", "schedule", "stats", "privacy", "delete_my_data")
_MODEL_CHANGES: Final = ("retrain", "promote", "rollback")

QUICK_COMMANDS: Final = {
    **dict.fromkeys(_READ_ONLY, "looks"),
    **dict.fromkeys(_MODEL_CHANGES, "commands"),
    "cancel": "cancels",
    "broadcast": "broadcast",
}
"""Commands that do not belong to the conversation, with the names of their lanes."""

_TAPS: Final = {
    **dict.fromkeys(("again", "asks"), "answers"),
    **{each: QUICK_COMMANDS[each] for each in (*_MODEL_CHANGES, "cancel")},
}
"""Taps that may take a long time to handle, by the prefix of their callback data, with the names of their lanes."""


_MAX_ID: Final = 2**63 - 1
"""The largest ID: SQLite's integers have 64 bits, and Telegram promises at most 52
(https://core.telegram.org/bots/api#user)."""

_MAX_DEPTH: Final = 100


def is_update(raw: object) -> bool:
    """Return whether `raw` is an update that can be stored.

    Such an update is a JSON object that has a valid `update_id` and is not nested too deeply.
    """
    if not isinstance(raw, dict):
        return False
    number = raw.get("update_id")
    if type(number) is not int or not 0 <= number <= _MAX_ID:  # a bool would be an instance of int
        return False
    level: list[Any] = [raw]
    for _ in range(_MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return True
    return False


def lane_of(raw: dict[str, Any]) -> str:
    """Return the name of an update's lane; all updates of unknown shape share one lane."""
    callback = raw.get("callback_query")
    if isinstance(callback, dict):
        kind = _TAPS.get(str(callback.get("data")).partition(":")[0], "taps")
        return f"{kind}:{_id(callback.get('from'))}"
    reaction = raw.get("message_reaction")
    if isinstance(reaction, dict):
        return f"taps:{_id(reaction.get('user'))}"
    guest = raw.get("guest_message")
    if isinstance(guest, dict):
        return f"guest:{_id(guest.get('from'))}"
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
    """Return the command at the beginning of `text`, or an empty string if there is none.

    For example, the command in "/Status@bot x" is "status".
    """
    if not isinstance(text, str) or not text.startswith("/"):
        return ""
    word = text[1:].split(maxsplit=1)[:1]
    return word[0].partition("@")[0].lower() if word and not text[1:2].isspace() else ""


def _id(owner: object) -> int:
    number = owner.get("id") if isinstance(owner, dict) else None
    return number if isinstance(number, int) else 0


def _children(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
