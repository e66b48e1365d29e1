"""Helpers for the emulator's own routes: a JSON object in, JSON out, errors in the Bot API's form.

Requests from pages of other origins are refused, so that no site open in the same browser can act for a person.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import web

from telegram_emulator.api_errors import BotApiError, Json, api_error

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(table: Iterable[tuple[str, str, Handler]]) -> list[web.RouteDef]:
    """Return a route for each method, path and handler, guarded against pages of other origins."""
    return [web.route(method, path, _guarded(handler)) for method, path, handler in table]


def answer(body: object) -> web.Response:
    """Return a JSON response."""
    return web.json_response(body, dumps=lambda value: json.dumps(value, ensure_ascii=False))


async def json_object(request: web.Request) -> Json:
    """Return the request's body. Raises `BotApiError` for anything but a JSON object."""
    try:
        body = await request.json()
    except ValueError:
        raise api_error("expected a JSON object") from None
    if not isinstance(body, dict):
        raise api_error("expected a JSON object")
    return body


def number(value: object) -> int | None:
    """Convert an optional number. Raises ValueError."""
    return None if value in (None, "") else int(str(value))


def _guarded(handler: Handler) -> Handler:
    """Refuse requests from pages of other origins, and answer errors as JSON."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        try:
            if origin and urlsplit(origin).netloc != request.host:
                raise api_error("pages of other origins may not call this", 403)
            response = await handler(request)
        except BotApiError as error:
            return web.json_response(error.body(), status=error.code)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response(api_error(f"wrong parameters: {error}").body(), status=400)
        return response

    return guarded
