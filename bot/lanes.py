"""Which updates must be handled one after the other: the lane of an update.

Standard library only. A private chat is one lane, in a group each member has one; an edited message waits for what it
was edited in. Taps on buttons and reactions have a lane of their own for each person, and so have a tap that asks for
another answer, /stop, and the commands that look at or steer the training or are about a person's data: none waits for
an answer that is just being streamed. Nodes have a lane of their own, because a /promote may wait for one that should
be taken out of service. Every lane ends in a colon and its person's id, by which the ledger finds what
came from somebody.
"""

from __future__ import annotations

from typing import Any, Final

QUICK_COMMANDS: Final = frozenset(
    {
        *("model", "retrain", "cancel", "status", "models", "promote", "rollback", "schedule", "stats"),
        *("privacy", "delete_my_data"),
    }
)
"""Commands that have nothing to do with the conversation in whose chat they are sent."""

NODE_COMMANDS: Final = frozenset({"drain", "undrain"})

_NODE_TAPS: Final = ("drain:", "undrain:")
_COMMANDING_TAPS: Final = ("cancel:", "promote:", "rollback:")
"""Beginnings of callback data that ask for what a quick command asks for."""

_LONG_TAPS: Final = ("again:",)
"""Beginnings of callback data whose handling takes as long as an answer: other taps must not wait for it."""


def lane_of(raw: dict[str, Any]) -> str:
    """The lane of an update as Telegram sent it. Updates of unknown shape share one."""
    callback = raw.get("callback_query")
    if isinstance(callback, dict):
        data = str(callback.get("data"))
        kind = "answers" if data.startswith(_LONG_TAPS) else "taps"
        kind = "commands" if data.startswith(_COMMANDING_TAPS) else kind
        kind = "nodes" if data.startswith(_NODE_TAPS) else kind
        return f"{kind}:{_id(callback.get('from'))}"
    stopped = raw.get("stopped_message_generation")
    if isinstance(stopped, dict):  # only in private chats, whose ids are their persons'
        return f"taps:{_id(stopped.get('chat'))}"
    reaction = raw.get("message_reaction")
    if isinstance(reaction, dict):
        return f"taps:{_id(reaction.get('user'))}"
    message = raw.get("message", raw.get("edited_message"))
    if not isinstance(message, dict):
        return "other"
    chat, sender = message.get("chat"), _id(message.get("from"))
    command = command_of(message.get("text"))
    if command in QUICK_COMMANDS:
        return f"commands:{sender}"
    if command in NODE_COMMANDS:
        return f"nodes:{sender}"
    if command == "broadcast":  # takes minutes
        return f"broadcast:{sender}"
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
