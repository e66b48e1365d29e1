"""How Telegram says no: an error code, a description, and now and then parameters.

The descriptions are Telegram's own words, as the open sources of its Bot API server and of TDLib give them
(github.com/tdlib/telegram-bot-api, github.com/tdlib/td). Clients match on them, so they are kept to the letter.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_PREFIXES = {400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


class Refused(Exception):
    """A call that is answered with `{"ok": false, "error_code": code, "description": description}`."""

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters

    def body(self) -> Json:
        """The JSON that Telegram answers."""
        body: Json = {"ok": False, "error_code": self.code, "description": self.description}
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def refused(reason: str, code: int = 400) -> Refused:
    """A refusal with the prefix of its code. As in Telegram the reason's first letter becomes small,
    unless it begins a constant such as BUTTON_DATA_INVALID."""
    if len(reason) > 1 and not (reason[1] == "_" or "A" <= reason[1] <= "Z"):
        reason = reason[0].lower() + reason[1:]
    return Refused(code, f"{_PREFIXES[code]}: {reason}")


def unauthorized() -> Refused:
    """The token belongs to no bot."""
    return Refused(401, "Unauthorized")


def too_many_requests(retry_after: int) -> Refused:
    """Flood control: ask again in `retry_after` seconds."""
    return Refused(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)


def not_modified() -> Refused:
    """An edit that changes nothing."""
    return refused(
        "message is not modified: specified new message content and reply markup are exactly the same "
        "as a current content and reply markup of the message"
    )
