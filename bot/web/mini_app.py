"""The review page as a Telegram Mini App, in which an admin logs in with data signed by Telegram.

Telegram opens /app. Its script (https://core.telegram.org/bots/webapps#initializing-mini-apps) posts the signed
data, which name the user, and a session of `bot.web.login` begins. The data can begin only one session, and expire
after an hour. The form has no CSRF token, because it already needs data that Telegram signs for an admin alone.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from aiogram.utils.web_app import WebAppInitData, safe_parse_webapp_init_data
from aiohttp import web
from cachetools import TTLCache
from yarl import URL

from bot.settings import TelegramSettings
from bot.web.login import Login
from bot.web.pages import Pages, see_other
from bot.web.security import IN_TELEGRAM, read_form

LOADER: Final = "https://telegram.org/js/telegram-web-app.js"
FRESH_SECONDS: Final = 3600
INIT_DATA_CHARACTERS: Final = 8192
SCHEMES: Final = ("light", "dark")
_USED: Final = 1000


class MiniApp:
    """The page that Telegram opens, and from which admins log in."""

    def __init__(self, settings: TelegramSettings, login: Login, pages: Pages) -> None:
        self._settings = settings
        self._login = login
        self._pages = pages
        self._used: MutableMapping[str, None] = TTLCache(_USED, 2 * FRESH_SECONDS)
        """The hashes of data that have begun a session."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which are open to everybody."""
        return [web.get("/app", self._page), web.post("/app", self._log_in)]

    async def _page(self, request: web.Request) -> web.Response:
        request[IN_TELEGRAM] = True
        return self._pages.render(request, "app.html", script=LOADER, loader=LOADER, refusal="")

    async def _log_in(self, request: web.Request) -> web.Response:
        """Begin a session for the admin whose signed data were sent."""
        request[IN_TELEGRAM] = True
        form, say = await read_form(request), self._pages.say(request)
        expired = say(
            "This page has expired, or your Telegram app doesn't store cookies. Close it and send /review again."
        )
        data = self._checked(form.get("init_data", ""))
        if data is None or data.user is None:
            return self._refuse(request, expired)
        if data.user.id not in self._settings.admins:
            return self._refuse(request, say("Only admins can do that."))
        name, scheme = str(data.user.id), form.get("scheme", "")
        if data.hash in self._used:
            known = self._login.session(request)
            if known is None or not known.in_telegram or known.name != name:
                return self._refuse(request, expired)
            return see_other("/review")  # the app was reloaded
        self._used[data.hash] = None
        scheme = scheme if scheme in SCHEMES else ""
        return self._login.begin(request, name, "/review", in_telegram=True, scheme=scheme)

    def _checked(self, init_data: str) -> WebAppInitData | None:
        """Return the data if Telegram signed them for this bot within the last hour, else None."""
        if len(init_data) > INIT_DATA_CHARACTERS:
            return None
        with suppress(ValueError, TypeError):  # a hash that is not ASCII raises a TypeError
            data = safe_parse_webapp_init_data(self._settings.token.get_secret_value(), init_data)
            if abs(time.time() - data.auth_date.timestamp()) <= FRESH_SECONDS:
                return data
        return None

    def _refuse(self, request: web.Request, refusal: str) -> web.Response:
        return self._pages.render(request, "app.html", status=403, loader="", refusal=refusal, here=URL("/app"))
