"""The emulator's own routes, beside the Bot API's: a JSON object in, JSON out, refusals in the Bot API's form.

Knows who may ask: whoever is on this machine, but no page of another origin. What a route does is its owner's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import web

from telegram_emulator.refusals import Json, Refused, refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(table: Iterable[tuple[str, str, Handler]]) -> list[web.RouteDef]:
    """A route for each method, path and handler, guarded against pages of other origins."""
    return [web.route(method, path, _guarded(handler)) for method, path, handler in table]


def answer(body: object) -> web.Response:
    """What was asked for, as JSON."""
    return web.json_response(body, dumps=lambda value: json.dumps(value, ensure_ascii=False))


async def json_object(request: web.Request) -> Json:
    """The request's body. Raises `Refused` for anything but a JSON object."""
    try:
        body = await request.json()
    except ValueError:
        raise refused("expected a JSON object") from None
    if not isinstance(body, dict):
        raise refused("expected a JSON object")
    return body


def number(value: object) -> int | None:
    """A number that may be left out. Raises ValueError for what is none."""
    return None if value in (None, "") else int(str(value))


def _guarded(handler: Handler) -> Handler:
    """Refuse requests that other sites' pages send, and put refusals into JSON."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        try:
            if origin and urlsplit(origin).netloc != request.host:
                raise refused("pages of other origins have no say here", 403)
            response = await handler(request)
        except Refused as refusal:
            return web.json_response(refusal.body(), status=refusal.code)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response(refused(f"wrong parameters: {error}").body(), status=400)
        return response

    return guarded
