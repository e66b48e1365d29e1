"""Security headers for every response, and the policy of each page.

No page may run scripts, load anything from elsewhere or be framed. Styles are allowed by their hash.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Final

from aiohttp import web

_STYLE: Final = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


def content_policy(page: bytes = b"") -> str:
    """Return the Content-Security-Policy for a page. Only its first `<style>` is allowed."""
    style = _STYLE.search(page)
    allowed = f"'sha256-{b64encode(sha256(style[1]).digest()).decode()}'" if style else "'none'"
    return (
        f"default-src 'none'; img-src 'self' data:; style-src {allowed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def harden(_: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that a response does not set itself (a signal handler: `on_response_prepare`)."""
    for name, value in {
        "Content-Security-Policy": content_policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }.items():
        response.headers.setdefault(name, value)
