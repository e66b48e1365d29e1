"""The one gate for outgoing calls: patience, and what to do when Telegram or the network says no.

A request middleware on the Bot's session, so no call can go round it. Knows which calls may be repeated and what
Telegram's refusals mean; `pace` has the rate limits. What is promised of which message: docs/promises.md. The errors it
raises::

    DeliveryError
    ├── Unreachable   the bot was blocked or muted, the chat or topic is gone: one call told, no other would help
    ├── Doubtful      a send broke off: it may have arrived, so it was not repeated
    └── Undelivered   Telegram cannot be reached for longer than our patience; asking later may help

Anything else Telegram refuses passes as aiogram's own exception: it is a mistake of ours.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.session.middlewares.base import BaseRequestMiddleware, NextRequestMiddlewareType
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramBadRequest,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.methods import (
    EditMessageReplyMarkup,
    EditMessageText,
    Response,
    SendChatAction,
    SendMessage,
    TelegramMethod,
)
from aiogram.methods.base import TelegramType
from aiogram.types import InlineKeyboardMarkup
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientConnectorError
from pydantic import Field

from bot.config import ConfigError
from bot.redaction import account
from bot.settings import TelegramSettings
from bot.telegram.rate_limit import ChatPace, Pace
from bot.telegram.sliding_window import Urgency

TOKEN_CURE: Final = "ask @BotFather for one and set THUMBTUNE_TELEGRAM__TOKEN"
CALL_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 60.0
FLOOD_PATIENCE_SECONDS: Final = 900.0
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 8.0

_SENDS: Final = ("send", "copy", "forward")
# What Telegram says where there is nobody to write to, and where a group lets the bot write no more
# (https://github.com/tdlib/td, https://core.telegram.org/method/messages.sendMessage).
_GONE: Final = (
    *("chat not found", "user is deactivated", "group chat was deactivated", "peer_id_invalid"),
    *("message thread not found", "topic_closed", "topic_deleted"),
    *("not enough rights", "have no rights", "need administrator rights", "chat_admin_required"),
    *("chat_restricted", "chat_write_forbidden", "chat_send_plain_forbidden"),
)

log = structlog.get_logger()


class DeliveryError(Exception):
    """A call did not succeed. The text says why."""


class Unreachable(DeliveryError):
    """Nobody is there to read, or we may not write there: blocked, kicked, muted, deleted."""


class Doubtful(DeliveryError):
    """The connection broke after the call had gone out; Telegram may have carried it out."""


class Undelivered(DeliveryError):
    """Telegram was not reached, or kept refusing, for longer than our patience."""


class GetRawUpdates(TelegramMethod[list[dict[str, Any]]]):
    """getUpdates as plain JSON: an update that aiogram cannot read yet must not hold up the others."""

    __returning__ = list[dict[str, Any]]
    __api_method__ = "getUpdates"

    offset: int | None = None
    limit: int | None = None
    timeout: int | None = None
    allowed_updates: list[str] | None = None


class Glimpse(EditMessageText):
    """An edit that shows an unfinished answer. It is never repeated and never waits: the next one says more.

    The call returns False where it was dropped.
    """


class Placeholder(SendMessage):
    """A message that will become an answer, where an answer can do without: in groups it is not sent unless there is
    room for it, since the answer needs a call of the same allowance.

    The call returns False where nothing was sent.
    """


class Notice(SendMessage):
    """Tells people of a group that they have to wait; it goes before what they wait for."""


class Repaint(EditMessageReplyMarkup):
    """Buttons that change often. What they show is asked for when the call's turn has come, so that only the newest
    state is painted; in groups it lets answers go first.
    """

    latest: Callable[[], Awaitable[InlineKeyboardMarkup]] = Field(exclude=True)


class Typing(SendChatAction):
    """What people see while we compute. Dropped where anything is in its way; it has a small allowance of its own."""


_DROPPABLE: Final = (Glimpse, Typing)
_URGENCIES: Final = {Notice: Urgency.NOTICE, Repaint: Urgency.REPAINT, Glimpse: Urgency.GLIMPSE}


def open_bot(settings: TelegramSettings, gate: Gate | None = None) -> Bot:
    """The Bot of `settings`, its session gated. Close it with `await bot.session.close()`.

    Raises `ConfigError` for what cannot be a token.
    """
    session = AiohttpSession(api=TelegramAPIServer.from_base(settings.api_base), timeout=CALL_SECONDS)
    session.middleware(gate or Gate(settings))
    token = settings.token.get_secret_value()
    try:
        return Bot(token, session=session)
    except TokenValidationError as error:
        what = "is no bot's token" if token else "is not set"
        raise ConfigError(f"telegram.token {what}: {TOKEN_CURE}") from error


class Gate(BaseRequestMiddleware):
    """Repeats calls, each at its `pace`. `counts` tells what happened since the start."""

    def __init__(self, settings: TelegramSettings) -> None:
        self.pace = Pace(settings)
        # Pydantic forgets a generic model that nobody holds, and takes milliseconds to make it anew for the next call.
        self._answers: set[type[Response[Any]]] = set()
        self.counts = {"calls": 0, "floods": 0, "repeats": 0, "doubtful": 0, "unreachable": 0, "dropped": 0}

    async def __call__(
        self, make_request: NextRequestMiddlewareType[TelegramType], bot: Bot, method: TelegramMethod[TelegramType]
    ) -> Response[TelegramType]:
        """Carry out one call. Raises `DeliveryError`, or aiogram's exception for a refusal that is our mistake."""
        self._answers.add(Response[method.__returning__])  # type: ignore[name-defined]  # a type known at run time
        if method.__api_method__ == GetRawUpdates.__api_method__:
            return await make_request(bot, method)  # the inbox has its own loop around it
        try:
            carry_out = self._glimpse if isinstance(method, _DROPPABLE) else self._deliver
            return await carry_out(make_request, bot, method)
        except TelegramForbiddenError as error:
            self.counts["unreachable"] += 1
            raise Unreachable(error.message) from error
        except TelegramMigrateToChat as error:
            log.info("a group has a new id", chat=getattr(method, "chat_id", None), now=error.migrate_to_chat_id)
            return await self(make_request, bot, method.model_copy(update={"chat_id": error.migrate_to_chat_id}))
        except TelegramBadRequest as error:
            refusal = error.message.lower()
            if "message is not modified" in refusal:
                return cast(Response[TelegramType], True)
            if any(words in refusal for words in _GONE):
                self.counts["unreachable"] += 1
                raise Unreachable(error.message) from error
            raise

    def numbers(self) -> dict[str, float]:
        """What there is to measure: the counts, and how many calls a second are made at most, at present."""
        return {**self.counts, "calls_per_second_allowed": self.pace.calls_per_second}

    async def _glimpse(
        self, make_request: NextRequestMiddlewareType[TelegramType], bot: Bot, method: TelegramMethod[TelegramType]
    ) -> Response[TelegramType]:
        chat = self._chat_of(method)
        dropped = cast(Response[TelegramType], False)
        typing = isinstance(method, Typing)
        if chat is not None and not (await self.pace.typing(chat) if typing else self.pace.free(chat)):
            self.counts["dropped"] += 1
            return dropped
        try:
            return await self._once(make_request, bot, method, None if typing else chat)
        except (TelegramRetryAfter, TelegramNetworkError, TelegramServerError, ClientDecodeError) as error:
            if isinstance(error, TelegramRetryAfter):
                self._flooded(chat, error)
            self.counts["dropped"] += 1
            return dropped

    async def _deliver(
        self, make_request: NextRequestMiddlewareType[TelegramType], bot: Bot, method: TelegramMethod[TelegramType]
    ) -> Response[TelegramType]:
        chat = self._chat_of(method)
        if isinstance(method, Placeholder) and chat is not None and not self.pace.free(chat):
            self.counts["dropped"] += 1
            return cast(Response[TelegramType], False)
        repeatable = not method.__api_method__.lower().startswith(_SENDS)
        patience, flood_patience = PATIENCE_SECONDS, FLOOD_PATIENCE_SECONDS
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._once(make_request, bot, method, chat)
            except TelegramRetryAfter as error:
                # Refused before anything was done: safe to repeat, whatever the method.
                self._flooded(chat, error)
                flood_patience -= error.retry_after
                if flood_patience < 0:
                    raise Undelivered(f"{method.__api_method__}: {error.message}") from error
                if chat is None:
                    await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError, ClientDecodeError) as error:
                if not repeatable and not isinstance(error.__cause__, ClientConnectorError):
                    self.counts["doubtful"] += 1
                    raise Doubtful(f"{method.__api_method__}: {account(error)}") from error
                patience -= pause
                if patience < 0:
                    raise Undelivered(f"{method.__api_method__}: {account(error)}") from error
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
            self.counts["repeats"] += 1

    async def _once(
        self,
        make_request: NextRequestMiddlewareType[TelegramType],
        bot: Bot,
        method: TelegramMethod[TelegramType],
        chat: ChatPace | None,
    ) -> Response[TelegramType]:
        if chat is not None:
            await self.pace.turn(chat, _URGENCIES.get(type(method), Urgency.ANSWER))
        if isinstance(method, Repaint):
            method.reply_markup = await method.latest()
        self.counts["calls"] += 1
        return await make_request(bot, method)

    def _flooded(self, chat: ChatPace | None, error: TelegramRetryAfter) -> None:
        self.counts["floods"] += 1
        log.warning("flood control", method=type(error.method).__name__, retry_after=error.retry_after)
        if chat is not None:
            self.pace.refused(chat, error.retry_after)

    def _chat_of(self, method: TelegramMethod[Any]) -> ChatPace | None:
        """The pace of the chat that the method writes to, None for methods without one (they are not limited)."""
        chat: int | str | None = getattr(method, "chat_id", None)
        return None if chat is None else self.pace.chat(chat)
