"""Bot API methods with results or delivery rules of their own, as subclasses of aiogram's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiogram.methods import EditMessageReplyMarkup, EditMessageText, SendChatAction, SendMessage, TelegramMethod
from aiogram.types import InlineKeyboardMarkup
from pydantic import Field


class GetRawUpdates(TelegramMethod[list[dict[str, Any]]]):
    """The getUpdates method with results as plain JSON.

    An update that the installed aiogram cannot parse therefore does not hold up the others.
    """

    __returning__ = list[dict[str, Any]]
    __api_method__ = "getUpdates"

    offset: int | None = None
    limit: int | None = None
    timeout: int | None = None
    allowed_updates: list[str] | None = None


class PartialEdit(EditMessageText):
    """An edit that shows an unfinished answer.

    The edit never waits for the rate limit and is never repeated. If it is dropped, the result is False.
    """


class Placeholder(SendMessage):
    """A message that will become an answer.

    If the chat's rate limit leaves no capacity, the message is dropped and the result is False.
    """


class Whisper(SendMessage):
    """A message in a group that only one person sees, which Telegram calls ephemeral.

    A bot may send one at any time only if it administers the group
    (https://core.telegram.org/bots/api#ephemeral-messages-and-commands). If Telegram refuses it, the result is
    False, and further ones in the same chat are dropped for a while. A server that does not know such messages sends a
    normal one.
    """


class Notice(SendMessage):
    """A message telling group members that they have to wait; it takes precedence over answers."""


class ButtonEdit(EditMessageReplyMarkup):
    """An edit of frequently changing buttons.

    `latest` is called when the edit is made, and returns the buttons to show. In groups, answers take
    precedence over the edit.
    """

    latest: Callable[[], Awaitable[InlineKeyboardMarkup]] = Field(exclude=True)


class Typing(SendChatAction):
    """A call that shows the "typing" status in a chat.

    It never waits and has a small rate limit of its own. If it is dropped, the result is False.
    """
