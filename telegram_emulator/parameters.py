"""The parameters of a Bot API call, read from a URL-encoded or multipart form.

Integers, booleans and JSON-serialized objects are parsed from text as Telegram parses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from telegram_emulator.api_errors import BotApiError, api_error

MAX_REQUEST_BYTES = 50 * 2**20  # bots upload files of up to 50 MB (core.telegram.org/bots/api#sending-files)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file uploaded in a multipart form."""

    name: str
    media_type: str
    data: bytes = field(repr=False)


class Parameters:
    """The parameters of a Bot API call by name, and its uploaded files by form field."""

    def __init__(self, values: Mapping[str, Any], uploads: Mapping[str, Upload] | None = None) -> None:
        self._values = values
        self._uploads = uploads or {}

    def text(self, name: str, default: str = "") -> str:
        """Return the parameter as text, or `default` if it is absent or null."""
        value = self._values.get(name)
        if value is None:
            return default
        return value if isinstance(value, str) else json.dumps(value)

    def integer(self, name: str, default: int = 0) -> int:
        """Return the parameter as an integer or, as in Telegram, `default` if it is absent or not an integer."""
        try:
            return int(self._values.get(name, default))
        except (TypeError, ValueError):
            return default

    def boolean(self, name: str) -> bool:
        """Return whether the parameter is "true", "yes" or "1", in upper or lower case."""
        return str(self._values.get(name, "")).lower() in {"true", "yes", "1"}

    def decoded(self, name: str, what: str) -> Any:
        """Return the decoded value of a JSON-serialized parameter, or None if it is absent or empty.

        Raises:
            BotApiError: The parameter is not valid JSON; `what` is its name in the error message.
        """
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise api_error(f"can't parse {what} JSON object") from None

    def object(self, name: str, what: str) -> dict[str, Any]:
        """Return the parameter as a JSON object, or an empty dict if it is absent.

        Raises:
            BotApiError: The parameter is not a JSON object; `what` is its name in the error message.
        """
        value = self.decoded(name, what)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise api_error(f"object expected as {what}")
        return value

    def objects(self, name: str, what: str) -> list[dict[str, Any]]:
        """Return the parameter as a list of JSON objects, or an empty list if it is absent.

        Raises:
            BotApiError: The parameter is not a list of JSON objects; `what` is its name in the error message.
        """
        value = self.decoded(name, what)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise api_error(f"array of objects expected as {what}")
        return value

    def upload(self, name: str) -> Upload | None:
        """Return the file uploaded for the parameter `name`, or None if there is none.

        The file is in the form field `name`, or in another field to which the parameter refers as
        `attach://<form field>`.
        """
        return self.attached(self.text(name)) or self._uploads.get(name)

    def attached(self, reference: str) -> Upload | None:
        """Return the file that `reference` (`attach://<form field>`) refers to, or None if there is none."""
        return self._uploads.get(reference.removeprefix("attach://")) if reference.startswith("attach://") else None


async def read_form(request: web.Request) -> tuple[dict[str, str], list[tuple[str, Upload]]]:
    """Return the text fields of a form, keyed by name, and its files, in order.

    Raises:
        BotApiError: The form is larger than 50 MB (code 413) or invalid.
    """
    try:
        form = await request.post()
    except web.HTTPRequestEntityTooLarge as error:
        raise BotApiError(413, "Request Entity Too Large") from error
    except ValueError as error:
        raise api_error(f"can't read the form: {error}") from error
    texts: dict[str, str] = {}
    uploads: list[tuple[str, Upload]] = []
    for name, value in form.items():
        if isinstance(value, web.FileField):
            with value.file as file:
                uploads.append((name, Upload(value.filename, value.content_type, file.read())))
        else:
            texts[name] = value if isinstance(value, str) else value.decode()
    return texts, uploads
