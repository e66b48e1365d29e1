"""Who may use an engine that we start: its own client, on this machine, with the key of this one launch.

The launcher makes a random key for every process (launch.py) and hands it over in the environment, never on the
command line, which every user of the machine can read. Standard library only.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

KEY_VARIABLE: Final = "ENGINE_KEY"
"""The environment variable that holds an engine's key."""

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def new_key() -> str:
    """Return a random key for one launch."""
    return secrets.token_urlsafe(32)


def own_key() -> str:
    """Take this engine's key out of the environment, so that no process it starts inherits it.

    Raises:
        SystemExit: There is none.
    """
    key = os.environ.pop(KEY_VARIABLE, "")
    if not key:
        raise SystemExit(
            f"{KEY_VARIABLE} is not set: export a long random text under that name, and have clients send it as their "
            "API key. The bot does both for the engines that it starts."
        )
    return key


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: an HTTP status and a sentence."""

    status: int
    message: str


def refusal(key: str, *, host: bytes, authorization: bytes) -> Refusal | None:
    """Check the headers `Host` and `Authorization` of a request; return None where it may be served.

    The host must be this machine's loopback name: a web page whose own domain resolves to 127.0.0.1 (DNS rebinding)
    sends its domain.
    """
    try:
        name = urlsplit(b"//" + host).hostname
    except ValueError:
        name = None
    if name is None or name.decode("latin-1") not in _LOOPBACK:
        return Refusal(403, "This engine is asked as 127.0.0.1 only.")
    if not hmac.compare_digest(authorization, f"Bearer {key}".encode()):
        return Refusal(401, "This engine wants the key that it was started with.")
    return None


def guarded(app: AsgiApp, key: str, routes: frozenset[tuple[str, str]]) -> AsgiApp:
    """Return `app` behind the check of `refusal`, with only `routes` (method, path) in reach."""

    async def serve(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refused = refusal(key, host=headers.get(b"host", b""), authorization=headers.get(b"authorization", b""))
        if refused is None and (scope.get("method"), scope["path"]) not in routes:
            refused = Refusal(404, "This engine has no such route.")
        if refused is None:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            body = json.dumps({"error": {"message": refused.message, "type": "invalid_request_error"}}).encode()
            kind = (b"content-type", b"application/json")
            await send({"type": "http.response.start", "status": refused.status, "headers": [kind]})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return serve
