"""Access control for engines started by the bot: only loopback host names, and a new key for each launch.

The launcher generates a random key for every engine process and passes the key in the environment, never
on the command line, which every user of the machine can read. A request must name a loopback host and
carry the key. This module uses only the standard library.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

KEY_VARIABLE: Final = "ENGINE_KEY"
"""The environment variable that holds an engine's key."""

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def new_key() -> str:
    """Return a random access key for one launch of an engine."""
    return secrets.token_urlsafe(32)


def own_key() -> str:
    """Return this engine's key and remove it from the environment, so that no child process inherits it.

    Raises:
        SystemExit: The environment variable with the key is not set.
    """
    key = os.environ.pop(KEY_VARIABLE, "")
    if not key:
        raise SystemExit(
            f"{KEY_VARIABLE} is not set: set it to a long random string, and have clients send this string as "
            "their API key. The bot does both for the engines that it starts."
        )
    return key


class AccessDenied(NamedTuple):
    """The HTTP status and the message with which a request is refused."""

    status: int
    message: str


def check_access(key: str, *, host: bytes, authorization: bytes) -> AccessDenied | None:
    """Check a request's `Host` and `Authorization` headers, and return None if the request is allowed.

    The host must be a loopback name, to block DNS rebinding: a web page whose own domain resolves to
    127.0.0.1 sends that domain as the host.
    """
    try:
        name = urlsplit(b"//" + host).hostname
    except ValueError:
        name = None
    if name is None or name.decode("latin-1") not in _LOOPBACK:
        return AccessDenied(403, "This engine only accepts requests to the host 127.0.0.1.")
    if not hmac.compare_digest(authorization, f"Bearer {key}".encode()):
        return AccessDenied(401, "This engine needs the key that it was started with, as a bearer token.")
    return None


def guarded(app: AsgiApp, key: str, routes: frozenset[tuple[str, str]]) -> AsgiApp:
    """Wrap an ASGI application so that it serves only `routes`, and only requests that `check_access` allows.

    The routes are pairs (method, path).
    """

    async def serve(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        denied = check_access(key, host=headers.get(b"host", b""), authorization=headers.get(b"authorization", b""))
        if denied is None and (scope.get("method"), scope["path"]) not in routes:
            denied = AccessDenied(404, "This engine has no such route.")
        if denied is None:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            body = json.dumps({"error": {"message": denied.message, "type": "invalid_request_error"}}).encode()
            kind = (b"content-type", b"application/json")
            await send({"type": "http.response.start", "status": denied.status, "headers": [kind]})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return serve
