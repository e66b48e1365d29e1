"""Access to the web server: secrets, networks, and the host names that a browser may use without a token.

Header values are bytes: aiohttp decodes them with surrogate escapes, so they are encoded the same way before they are
compared (https://docs.aiohttp.org/en/stable/web_reference.html#aiohttp.web.BaseRequest.raw_headers).
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import urlsplit

from aiohttp import web

Network = IPv4Network | IPv6Network


def is_secret(given: bytes, expected: str) -> bool:
    """Return whether a secret is the expected one, comparing in constant time."""
    return hmac.compare_digest(given, expected.encode())


def header(request: web.Request, name: str) -> bytes:
    """Return a header's value as it was sent, or empty bytes if there is none."""
    return request.headers.get(name, "").encode("utf-8", "surrogateescape")


def password(request: web.Request) -> bytes:
    """Return the password of basic authentication or the bearer token, or empty bytes if there is neither."""
    scheme, _, credentials = header(request, "Authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    try:
        return b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def caller(request: web.Request, proxies: Sequence[Network]) -> str:
    """Return the caller's address: the last address in the chain that is not one of our proxies."""
    address = request.remote or ""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while forwarded and is_within(address, proxies):
        address = forwarded.pop().strip() or address
    return address


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Return whether an address belongs to one of the networks. Text that is not an address does not."""
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

    A page of another site can reach a loopback address by a name of its own (DNS rebinding), and the browser then sends
    that name.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", host.strip("[]").lower()) or is_loopback(name)
