"""Security of the web server: secrets, networks, host names, and headers.

The host names are those that a browser may use if no token is set. Header values are compared as bytes:
aiohttp decodes them with surrogate escapes, so this module encodes them the same way before comparing
them (https://docs.aiohttp.org/en/stable/web_reference.html#aiohttp.web.BaseRequest.raw_headers). No page
may run scripts, load anything from elsewhere or be framed. Styles are allowed by their hash.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

Network = IPv4Network | IPv6Network

_STYLE: Final = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


def is_secret(given: bytes, expected: str) -> bool:
    """Return whether the secret `given` equals `expected`, comparing in constant time."""
    return hmac.compare_digest(given, expected.encode())


def header(request: web.Request, name: str) -> bytes:
    """Return the bytes of a header's value as sent, or empty bytes if the request has no such header."""
    return request.headers.get(name, "").encode("utf-8", "surrogateescape")


def password(request: web.Request) -> bytes:
    """Return the basic authentication password or the bearer token, or empty bytes if neither was sent."""
    scheme, _, credentials = header(request, "Authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    try:
        return b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


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


def content_policy(page: bytes = b"") -> str:
    """Return a Content-Security-Policy that allows no styles except the first `<style>` element of `page`."""
    style = _STYLE.search(page)
    allowed = f"'sha256-{b64encode(sha256(style[1]).digest()).decode()}'" if style else "'none'"
    return (
        f"default-src 'none'; img-src 'self' data:; style-src {allowed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def harden(_: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers that `response` does not set itself (an `on_response_prepare` signal handler)."""
    for name, value in {
        "Content-Security-Policy": content_policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }.items():
        response.headers.setdefault(name, value)
