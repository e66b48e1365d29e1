"""The data that Telegram passes to a Mini App when a user opens it."""

from __future__ import annotations

import hmac
import json
import time
from urllib.parse import urlencode


def init_data(token: str, user: int, /, *, age: float = 0, **fields: str) -> str:
    """Return the data of a user who opened the Mini App `age` seconds ago, signed for the bot with `token`.

    Source: https://core.telegram.org/bots/webapps#validating-data-received-via-the-mini-app
    """
    values = {
        "query_id": "AAF1",
        "user": json.dumps({"id": user, "first_name": "Röot", "language_code": "en"}, ensure_ascii=False),
        "auth_date": str(int(time.time() - age)),
        "signature": "not-checked",
        **fields,
    }
    checked = "\n".join(f"{name}={values[name]}" for name in sorted(values))
    key = hmac.digest(b"WebAppData", token.encode(), "sha256")
    return urlencode({**values, "hash": hmac.digest(key, checked.encode(), "sha256").hex()})
