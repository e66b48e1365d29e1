"""Errors of the Bot API: a code, a description and, for a few of them, parameters.

The descriptions are Telegram's own, taken from the open source code of its Bot API server and of TDLib
(github.com/tdlib/telegram-bot-api, github.com/tdlib/td). Clients match on them, so they are kept verbatim.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_PREFIXES = {400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


class BotApiError(Exception):
    """The error of a call, answered with `{"ok": false, "error_code": code, "description": description}`."""

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters

    def body(self) -> Json:
        """Return the JSON body of the answer."""
        body: Json = {"ok": False, "error_code": self.code, "description": self.description}
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def api_error(reason: str, code: int = 400) -> BotApiError:
    """Return an error with the prefix of its code.

    Telegram puts the reason's first letter in lower case, unless it begins a constant such as BUTTON_DATA_INVALID.
    """
    if len(reason) > 1 and not (reason[1] == "_" or "A" <= reason[1] <= "Z"):
        reason = reason[0].lower() + reason[1:]
    return BotApiError(code, f"{_PREFIXES[code]}: {reason}")


def too_many_requests(retry_after: int) -> BotApiError:
    """Return the error of flood control; `retry_after` is in seconds."""
    return BotApiError(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)
