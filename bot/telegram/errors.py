"""Errors of calls to Telegram.

::

    DeliveryError
    ├── Unreachable   the bot was blocked or muted, or the chat or topic is gone
    ├── Doubtful      the connection broke; the sent message may have arrived, so it is not repeated
    └── Undelivered   Telegram was not reached or kept refusing for too long; a later attempt may succeed

Any other refusal is a bug in the caller and is raised as aiogram's own exception.
"""

from typing import Final

from aiogram.exceptions import TelegramAPIError


class DeliveryError(Exception):
    """A failed call to Telegram; the text of the error gives the reason."""


class Unreachable(DeliveryError):
    """The bot cannot write to the chat: the bot was blocked, kicked or muted, or the chat is gone."""


class Doubtful(DeliveryError):
    """The connection broke after the call was sent, so Telegram may or may not have carried it out."""


class Undelivered(DeliveryError):
    """Telegram could not be reached, or kept refusing the call, until the retries were exhausted."""


CALL_ERRORS: Final = (DeliveryError, TelegramAPIError)
"""The errors that a call to Telegram may raise."""
