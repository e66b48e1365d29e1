"""Bot API errors, with a code, a description and, in a few cases, parameters.

The descriptions are Telegram's own, taken from the open-source code of its Bot API server and of TDLib
(github.com/tdlib/telegram-bot-api, github.com/tdlib/td). They are kept verbatim because clients match on
them.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_PREFIXES = {400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


class BotApiError(Exception):
    """An error in response to a Bot API call.

    The response body is `{"ok": false, "error_code": code, "description": description}`, with `parameters`
    if there are any.
    """

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters

    def body(self) -> Json:
        """Return the JSON body of the response."""
        body: Json = {"ok": False, "error_code": self.code, "description": self.description}
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def api_error(reason: str, code: int = 400) -> BotApiError:
    """Return an error whose description is `reason`, prefixed with the HTTP reason phrase of `code`.

    As in Telegram, the first letter of `reason` becomes lower case, unless it begins a constant such as
    BUTTON_DATA_INVALID.
    """
    if len(reason) > 1 and not (reason[1] == "_" or "A" <= reason[1] <= "Z"):
        reason = reason[0].lower() + reason[1:]
    return BotApiError(code, f"{_PREFIXES[code]}: {reason}")


def too_many_requests(retry_after: int) -> BotApiError:
    """Return the flood-control error that tells the client to retry after `retry_after` seconds."""
    return BotApiError(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)
