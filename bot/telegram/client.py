"""The Telegram client: middleware that limits the rate of calls, retries failed ones and translates errors.

The middleware is part of the bot's session and therefore sees every call. docs/promises.md describes
what is guaranteed for each kind of message.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
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
from aiogram.methods import Response, TelegramMethod
from aiogram.methods.base import TelegramType
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientConnectorError, ClientTimeout, ConnectionTimeoutError
from cachetools import TTLCache

from bot.config import ConfigError
from bot.redaction import error_text
from bot.settings import TelegramSettings
from bot.telegram.errors import Doubtful, Undelivered, Unreachable
from bot.telegram.methods import ButtonEdit, GetRawUpdates, Notice, PartialEdit, Placeholder, Typing, Whisper
from bot.telegram.rate_limit import ChatLimiter, RateLimiter
from bot.telegram.sliding_window import Priority

TOKEN_CURE: Final = "get one from @BotFather, and run thumbtune init or set THUMBTUNE_TELEGRAM__TOKEN"
GUEST_MODE: Final = (
    "open the bot's settings in @BotFather's Mini App (https://t.me/BotFather?startapp) and enable Guest Mode"
)
"""How to turn on guest mode (https://core.telegram.org/bots/features#guest-bots)."""

CALL_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
MAX_RETRY_SECONDS: Final = 60.0
MAX_FLOOD_SECONDS: Final = 900.0
REFUSED_SECONDS: Final = 3600.0
"""How long no ephemeral message is sent in a chat after Telegram has refused one there."""

REMEMBERED: Final = 4096
FIRST_BACKOFF: Final = 0.25
MAX_BACKOFF: Final = 8.0

_Request = Callable[[TelegramMethod[Any]], Awaitable[Response[Any]]]

_SENDS: Final = ("send", "copy", "forward")
# Refusals for chats that are gone, and for groups in which the bot may no longer write
# (https://github.com/tdlib/td, https://core.telegram.org/method/messages.sendMessage).
_GONE: Final = (
    *("chat not found", "user is deactivated", "group chat was deactivated", "peer_id_invalid"),
    *("message thread not found", "topic_closed", "topic_deleted"),
    *("not enough rights", "have no rights", "need administrator rights", "chat_admin_required"),
    *("chat_restricted", "chat_write_forbidden", "chat_send_plain_forbidden"),
)

_NOT_CONNECTED: Final = (ClientConnectorError, ConnectionTimeoutError)
"""The causes of network errors after which it is certain that Telegram has not received the call."""

log = structlog.get_logger()

_PRIORITIES: Final = {Notice: Priority.NOTICE, ButtonEdit: Priority.BUTTONS, PartialEdit: Priority.PARTIAL}


def open_bot(settings: TelegramSettings, middleware: DeliveryMiddleware | None = None) -> Bot:
    """Return the bot for `settings`; close it with `await bot.session.close()`.

    Raises:
        ConfigError: The token is missing or malformed.
    """
    timeout: Any = ClientTimeout(CALL_SECONDS, sock_connect=CONNECT_SECONDS)  # aiogram passes it on to aiohttp
    session = AiohttpSession(api=TelegramAPIServer.from_base(settings.api_base), timeout=timeout)
    session.middleware(middleware or DeliveryMiddleware(settings))
    token = settings.token.get_secret_value()
    try:
        return Bot(token, session=session)
    except TokenValidationError as error:
        problem = "is not a bot token" if token else "is not set"
        raise ConfigError(f"telegram.token {problem}: {TOKEN_CURE}") from error


class DeliveryMiddleware(BaseRequestMiddleware):
    """Request middleware that keeps calls within the rate limits, and retries failed calls if that is safe.

    The attribute `counts` holds totals since the start.
    """

    def __init__(self, settings: TelegramSettings) -> None:
        self.limiter = RateLimiter(settings)
        self._address = settings.api_base
        self._reached = True
        self._public: TTLCache[int | str, None] = TTLCache(REMEMBERED, REFUSED_SECONDS)
        # Pydantic drops a generic model that is not referenced, and creating it again takes milliseconds.
        self._answers: set[type[Response[Any]]] = set()
        self.counts = {"calls": 0, "floods": 0, "repeats": 0, "doubtful": 0, "unreachable": 0, "dropped": 0}

    async def __call__(
        self, make_request: NextRequestMiddlewareType[TelegramType], bot: Bot, method: TelegramMethod[TelegramType]
    ) -> Response[TelegramType]:
        """Make one call to Telegram.

        Raises:
            DeliveryError: The call failed; see `bot.telegram.errors` for the subclasses.
            TelegramAPIError: Telegram refused the call for another reason.
        """
        self._answers.add(Response[method.__returning__])  # type: ignore[name-defined]  # a type known at run time
        if method.__api_method__ == GetRawUpdates.__api_method__:
            return await make_request(bot, method)  # the receiver retries
        try:
            attempt = self._try_once if isinstance(method, PartialEdit | Typing) else self._deliver
            if isinstance(method, Whisper):
                return await self._whisper(partial(make_request, bot), method)
            return await attempt(partial(make_request, bot), method)
        except TelegramForbiddenError as error:
            self.counts["unreachable"] += 1
            raise Unreachable(error.message) from error
        except TelegramMigrateToChat as error:
            log.info("group has a new ID", chat=getattr(method, "chat_id", None), new=error.migrate_to_chat_id)
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
        """Return the metrics by name: the counts, and the current overall limit in calls per second."""
        return {**self.counts, "calls_per_second_allowed": self.limiter.calls_per_second}

    async def _try_once(self, request: _Request, method: TelegramMethod[Any]) -> Response[Any]:
        chat = self._chat_of(method)
        typing = isinstance(method, Typing)
        if chat is not None and not (
            await self.limiter.acquire_typing(chat) if typing else self.limiter.has_capacity(chat)
        ):
            return self._dropped()
        try:
            return await self._call(request, method, None if typing else chat)
        except TelegramRetryAfter as error:
            self._flooded(chat, error)
        except (TelegramNetworkError, TelegramServerError, ClientDecodeError):
            pass
        return self._dropped()

    async def _whisper(self, request: _Request, method: Whisper) -> Response[Any]:
        if method.chat_id not in self._public:
            try:
                return await self._deliver(request, method)
            except (TelegramBadRequest, TelegramForbiddenError) as error:
                log.info("ephemeral message refused", chat=method.chat_id, error=error.message)
                self._public[method.chat_id] = None
        return self._dropped()

    async def _deliver(self, request: _Request, method: TelegramMethod[Any]) -> Response[Any]:
        chat = self._chat_of(method)
        if isinstance(method, Placeholder) and chat is not None and not self.limiter.has_capacity(chat):
            return self._dropped()
        repeatable = not method.__api_method__.lower().startswith(_SENDS)
        retry_left, flood_left = MAX_RETRY_SECONDS, MAX_FLOOD_SECONDS
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await self._call(request, method, chat)
            except TelegramRetryAfter as error:
                # Telegram refuses before it does anything, so any method can be repeated.
                self._flooded(chat, error)
                flood_left -= error.retry_after
                if flood_left < 0:
                    raise Undelivered(f"{method.__api_method__}: {error.message}") from error
                if chat is None:
                    await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError, ClientDecodeError) as error:
                if not repeatable and not isinstance(error.__cause__, _NOT_CONNECTED):
                    self.counts["doubtful"] += 1
                    raise Doubtful(f"{method.__api_method__}: {error_text(error)}") from error
                retry_left -= backoff
                if retry_left < 0:
                    raise Undelivered(f"{method.__api_method__}: {error_text(error)}") from error
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(2 * backoff, MAX_BACKOFF)
            self.counts["repeats"] += 1

    async def _call(self, request: _Request, method: TelegramMethod[Any], chat: ChatLimiter | None) -> Response[Any]:
        if chat is not None:
            await self.limiter.acquire(chat, _PRIORITIES.get(type(method), Priority.ANSWER))
        if isinstance(method, ButtonEdit):
            method.reply_markup = await method.latest()
        self.counts["calls"] += 1
        try:
            response = await request(method)
        except TelegramNetworkError as error:
            if self._reached and isinstance(error.__cause__, _NOT_CONNECTED):
                self._reached = False
                log.warning(
                    "Telegram cannot be reached; the bot keeps trying", address=self._address, error=error_text(error)
                )
            raise
        if not self._reached:
            self._reached = True
            log.info("Telegram can be reached again", address=self._address)
        return response

    def _dropped(self) -> Response[Any]:
        self.counts["dropped"] += 1
        return cast(Response[Any], False)

    def _flooded(self, chat: ChatLimiter | None, error: TelegramRetryAfter) -> None:
        self.counts["floods"] += 1
        log.warning("flood control", method=type(error.method).__name__, retry_after=error.retry_after)
        if chat is not None:
            self.limiter.refused(chat, error.retry_after)

    def _chat_of(self, method: TelegramMethod[Any]) -> ChatLimiter | None:
        """Return the limiter of the chat to which `method` writes, or None if the call has no chat.

        As a guest, the bot does not know which chat its message is in, so each message has the limits of a group.
        """
        found = (getattr(method, name, None) for name in ("chat_id", "inline_message_id", "guest_query_id"))
        chat: int | str | None = next((each for each in found if each is not None), None)
        return None if chat is None else self.limiter.chat(chat)
