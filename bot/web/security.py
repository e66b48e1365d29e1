"""Security of the web server: secrets, networks, host names, and headers.

The host names are those that a browser may use if no token is set. Header values are compared as bytes:
aiohttp decodes them with surrogate escapes, so this module encodes them the same way before comparing
them (https://docs.aiohttp.org/en/stable/web_reference.html#aiohttp.web.BaseRequest.raw_headers). No page
may load anything from elsewhere or be framed by another site, except for the Mini App (`bot.web.mini_app`),
which loads Telegram's script and is framed by Telegram's web client. Styles, and the script of a page with
forms, are allowed by their hashes.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

Network = IPv4Network | IPv6Network

BODY_SECONDS = 30.0
"""How long the body of a request may take to arrive."""

TELEGRAM: Final = "https://web.telegram.org"
"""Telegram's web client, which shows a Mini App in a frame. The other clients show it without one."""

IN_TELEGRAM: Final = web.RequestKey("in_telegram", bool)
"""Whether a request comes from the Mini App, so that `TELEGRAM` may frame the response."""

_FIELDS: Final = 50
_STYLE: Final = re.compile(rb"<style>(.*?)</style>", re.DOTALL)
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def is_secret(given: bytes, expected: str) -> bool:
    """Return whether the secret `given` equals `expected`, comparing in constant time."""
    return hmac.compare_digest(given, expected.encode())


def header(request: web.Request, name: str) -> bytes:
    """Return the bytes of a header's value as sent, or empty bytes if the request has no such header."""
    return request.headers.get(name, "").encode("utf-8", "surrogateescape")


def credentials(request: web.Request) -> tuple[str, bytes]:
    """Return the user name and the password or bearer token from the `Authorization` header.

    The name is empty for a bearer token. Both are empty if the header is missing or malformed.
    """
    scheme, _, given = header(request, "Authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return "", given.strip()
    try:
        name, _, password = b64decode(given, validate=True).partition(b":")
    except ValueError:
        return "", b""
    return name.decode("utf-8", "replace"), password


def caller(request: web.Request, proxies: Sequence[Network]) -> str:
    """Return the caller's address: the last address in the forwarding chain that is not in `proxies`."""
    address = request.remote or ""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while forwarded and is_within(address, proxies):
        address = forwarded.pop().strip() or address
    return address


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Return whether `address` is a valid IP address that belongs to one of the networks."""
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def is_own_name(request: web.Request, host: str) -> bool:
    """Return whether the Host header names this machine: `localhost`, a loopback address, or `host` itself.

    This check blocks DNS rebinding, in which a page of another site reaches a loopback address through the
    site's own domain name. The browser then sends that domain name in the Host header.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", host.strip("[]").lower()) or is_loopback(name)


def content_policy(
    request: web.Request, page: bytes = b"", *, interactive: bool = False, framed: bool = False, script: str = ""
) -> str:
    """Return a Content-Security-Policy that allows no styles except the first `<style>` element of `page`.

    If the page is `interactive`, its first `<script>` element is allowed as well, and so are forms, frames and
    event streams of this server. If it is `framed`, this server's pages may frame it. `script` is the address of
    another script that the page loads.
    """
    own_script, own = (_allowed(_SCRIPT, page), "'self'") if interactive else ("'none'", "'none'")
    script = f"{script} {own_script}" if script else own_script
    allowed = (["'self'"] if framed else []) + ([TELEGRAM] if request.get(IN_TELEGRAM) else [])
    ancestors = " ".join(allowed) or "'none'"
    return (
        f"default-src 'none'; img-src 'self' data:; style-src {_allowed(_STYLE, page)}; script-src {script}; "
        f"connect-src {own}; frame-src {own}; form-action {own}; base-uri 'none'; "
        f"frame-ancestors {ancestors}"
    )


def _allowed(element: re.Pattern[bytes], page: bytes) -> str:
    """Return the source expression that allows the first match of `element` in a page and no other."""
    found = element.search(page)
    return f"'sha256-{b64encode(sha256(found[1]).digest()).decode()}'" if found else "'none'"


async def read_body(request: web.Request) -> bytes:
    """Return the body of a request.

    Raises:
        web.HTTPException: The body is damaged or too large, or took too long.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text="the body took too long") from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(text="the body is damaged") from error


async def read_form(request: web.Request) -> dict[str, str]:
    """Return the fields of a form that was sent as `application/x-www-form-urlencoded`."""
    body = (await read_body(request)).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=_FIELDS))
    except ValueError as error:
        raise web.HTTPBadRequest(text="too many fields") from error


def set_cookie(request: web.Request, response: web.StreamResponse, name: str, value: str, seconds: int) -> None:
    """Set a cookie that only this server's own pages send back; with 0 seconds, delete it.

    Inside the frame of Telegram's web client this server is a third party, whose cookies need `SameSite=None`.
    `Partitioned` restricts such a cookie to frames of the same client, where browsers support it
    (https://developer.mozilla.org/en-US/docs/Web/Privacy/Guides/Privacy_sandbox/Partitioned_cookies).
    """
    if request.get(IN_TELEGRAM):
        scope = "SameSite=None; Secure; Partitioned"
    else:
        https = request.secure or header(request, "X-Forwarded-Proto") == b"https"
        scope = "SameSite=Strict; Secure" if https else "SameSite=Strict"
    # http.cookies supports Partitioned from Python 3.14 on.
    response.headers.add("Set-Cookie", f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; {scope}")


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers that `response` does not set itself (an `on_response_prepare` signal handler)."""
    for name, value in {
        "Content-Security-Policy": content_policy(request),
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }.items():
        response.headers.setdefault(name, value)
