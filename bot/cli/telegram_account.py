"""The bot's account, as Telegram describes it to the owner of the token."""

from __future__ import annotations

from typing import Final

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramNotFound, TelegramUnauthorizedError
from aiogram.types import User

_CALL_SECONDS: Final = 20

REFUSED: Final = (TelegramUnauthorizedError, TelegramNotFound)
"""The errors of `read_account` for a token that the server refuses; after others, the token may still be valid."""


UNREACHABLE_CURE: Final = (
    "check this machine's connection and firewall; where Telegram needs a proxy, set telegram.api_base to a Bot API "
    "server of your own"
)
"""What to do if Telegram cannot be reached."""


def open_bot(api_base: str, token: str) -> Bot:
    """Return a client of the Bot API at `api_base`; use it as an async context manager.

    Raises:
        TokenValidationError: The token is malformed.
    """
    return Bot(token, session=AiohttpSession(api=TelegramAPIServer.from_base(api_base), timeout=_CALL_SECONDS))


async def read_account(api_base: str, token: str) -> User:
    """Return the account that the token belongs to.

    Raises:
        AiogramError: The token is malformed, or the server does not answer or does not accept it.
    """
    async with open_bot(api_base, token) as bot:
        return await bot.get_me()
