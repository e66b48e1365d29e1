"""The labels of values in /status, the operator page and `thumbtune status`, so that all three use the same words."""

from __future__ import annotations

from typing import Final

from bot.i18n import Say, later

NAMES: Final = {
    "live": later("live model"),
    "in_flight": later("answers in progress"),
    "waiting": later("questions waiting"),
    "restarts": later("engine restarts"),
    "samples": later("answers to learn from"),
    "next_run": later("next scheduled run"),
    "users": later("people"),
    "chats": later("chats"),
    "sessions": later("conversations"),
    "exchanges": later("answers"),
    "pictures": later("pictures"),
    "votes": later("votes cast, with changes and reasons"),
    "ups": later("liked"),
    "downs": later("disliked"),
    "runs": later("runs"),
    "runs_failed": later("failed runs"),
    "models": later("models"),
    "updates_pending": later("messages in the queue"),
    "updates_set_aside": later("messages that could not be handled"),
    "replies_doubtful": later("replies that may not have arrived"),
}


def named(name: str, value: object, say: Say) -> str:
    """Return a value preceded by its name, such as "answers: 12"; `name` is a key of `NAMES`."""
    return say("{name}: {value}", name=say(NAMES[name]), value=value)


def line(*parts: str) -> str:
    """Join parts with semicolons into a line that begins with a capital letter."""
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]
