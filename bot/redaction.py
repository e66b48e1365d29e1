"""Error messages without personal data or secrets, for logs, the ledger and admins.

Libraries quote the data that caused an error: pydantic quotes the invalid value, aiogram quotes
Telegram's whole response, and aiohttp quotes the address, which contains the bot's token.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Final

from aiohttp import ClientResponseError, RedirectClientError
from pydantic import BaseModel, SecretStr, ValidationError

MAX_LISTED: Final = 5
"""How many validation errors are listed: pydantic reports one for each alternative of a union."""


def error_text(error: BaseException) -> str:
    """Return the message of an error without the values that caused it."""
    from aiogram.exceptions import ClientDecodeError  # aiogram takes seconds to import, too long for the command line

    match error:
        case ValidationError():
            found = error.errors(include_url=False, include_context=False, include_input=False)
            listed = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found[:MAX_LISTED]]
            more = [f"{len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []
            return f"{error.title} cannot be read ({'; '.join(listed + more)})"
        case ClientDecodeError():
            return f"{error.message} ({type(error.original).__name__}: {error_text(error.original)})"
        case ClientResponseError():
            return f"HTTP {error.status} {error.message}"
        case RedirectClientError():
            return "redirected to an address that cannot be requested"
    return str(error)


def error_trace(error: BaseException) -> str:
    """Return the traceback of an error, preceded by that of its cause, without the values of variables.

    For an exception group, the tracebacks of its exceptions follow.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{error_trace(cause)}\nwhich led to\n" if cause else ""
    after = (
        "".join(f"\nwith\n{error_trace(each)}" for each in error.exceptions)
        if isinstance(error, BaseExceptionGroup)
        else ""
    )
    return (
        f"{before}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}: {error_text(error)}{after}"
    )


def secrets_of(settings: BaseModel) -> list[str]:
    """Return the secrets that are set in settings and their sections."""
    found = []
    for _, value in settings:
        if isinstance(value, SecretStr) and value.get_secret_value():
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += secrets_of(value)
    return found


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with each of the secrets replaced by "[secret]"."""
    for each in sorted(secrets, key=len, reverse=True):
        text = text.replace(each, "[secret]")
    return text
