"""What went wrong, for logs, the ledger and admins: an error's own words, without those of people.

Libraries quote what they stumble over: pydantic the value that it cannot read, aiogram the whole answer of Telegram,
aiohttp the address, which has the bot's token in it. Here it is said what was wrong and where, without the quotation.
"""

from __future__ import annotations

import traceback
from typing import Final

from aiohttp import ClientResponseError, RedirectClientError
from pydantic import ValidationError

LISTED: Final = 5
"""So many of a value's faults are named; of a union each alternative has its own."""


def account(error: BaseException) -> str:
    """What an error says, on one line or a few."""
    from aiogram.exceptions import ClientDecodeError  # its import takes seconds, which the command line need not wait

    match error:
        case ValidationError():
            found = error.errors(include_url=False, include_context=False, include_input=False)
            listed = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found[:LISTED]]
            more = [f"{len(found) - LISTED} more"] if len(found) > LISTED else []
            return f"{error.title} cannot be read ({'; '.join(listed + more)})"
        case ClientDecodeError():
            return f"{error.message} ({type(error.original).__name__}: {account(error.original)})"
        case ClientResponseError():
            return f"HTTP {error.status} {error.message}"
        case RedirectClientError():
            return "sent on to an address that cannot be asked"
    return str(error)


def trace(error: BaseException) -> str:
    """Where an error came from, what caused it first; without the values of variables too."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{trace(cause)}\nwhich led to\n" if cause else ""
    return f"{before}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}: {account(error)}"
