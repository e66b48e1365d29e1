"""Access to the operator's pages: the login form, sessions, passwords in headers, and protection from forged forms.

With `web.token`, an operator logs in with the form, which sets a session cookie, and scripts send the token
in the Authorization header. Without it, requests from this machine are treated as the operator's. Admins can
also begin a session in Telegram (`bot.web.mini_app`). Sessions are kept in memory, so a restart ends them. A form
carries a token that only the operator's own pages contain, because a browser may send the cookie, or a password
that it remembers, with the forms of other sites.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from cachetools import TTLCache
from yarl import URL

from bot.admin.refusals import AdminRefusal, refused
from bot.settings import WebSettings
from bot.web.pages import ANYBODY, OPERATOR, Operator, Pages, local_path, see_other
from bot.web.security import (
    IN_TELEGRAM,
    Network,
    caller,
    credentials,
    is_loopback,
    is_own_name,
    is_secret,
    read_form,
    set_cookie,
)
from storage.errors import StorageError, UnknownRecord

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE: Final = "thumbtune"
SESSION_SECONDS: Final = 12 * 3600
SESSIONS: Final = 1000
NAME_CHARACTERS: Final = 40
FAILURES: Final = 5
"""The number of wrong passwords after which an address has to wait."""

WAIT_SECONDS = 60
ADDRESSES: Final = 10_000

log = structlog.get_logger()


class Login:
    """Authenticates the operator."""

    def __init__(self, settings: WebSettings, proxies: Sequence[Network], pages: Pages) -> None:
        self._settings = settings
        self._token = settings.token.get_secret_value()
        self._proxies = proxies
        self._pages = pages
        self._key = secrets.token_bytes(32)
        self._sessions: MutableMapping[str, Operator] = TTLCache(SESSIONS, SESSION_SECONDS)
        self._failures: MutableMapping[str, int] = TTLCache(ADDRESSES, WAIT_SECONDS)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for logging in and out."""
        return [
            web.get("/login", self._form),
            web.post("/login", self._log_in),
            web.post("/logout", self.private(self._log_out)),
        ]

    def private(self, handler: Handler) -> Handler:
        """Return a handler that serves only the operator, and accepts forms only from the operator's own pages."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            operator, say = self._admit(request), self._pages.say(request)
            if request.method == "POST":
                given = (await read_form(request)).get("csrf", "")
                if not is_secret(given.encode(), operator.csrf):
                    raise web.HTTPForbidden(text=say("This form is out of date. Open the page again."))
            try:
                return await handler(request)
            except UnknownRecord as error:
                raise web.HTTPNotFound(text=say(str(error))) from error
            except AdminRefusal as refusal:
                raise web.HTTPConflict(text=refused(refusal, say)) from refusal
            except StorageError as error:
                raise web.HTTPServiceUnavailable(text=refused(error, say)) from error

        return guarded

    def error_pages(self) -> Middleware:
        """Return a middleware that shows errors to the operator as pages, if the browser asked for a page."""

        @web.middleware
        async def shown(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPError as error:
                if "text/html" not in request.headers.get("Accept", ""):
                    raise
                if isinstance(error, web.HTTPNotFound) and OPERATOR not in request:  # no route has this path
                    with suppress(web.HTTPException):
                        self._admit(request)
                if OPERATOR not in request:
                    raise
                return self._pages.error(request, error)

        return shown

    def _admit(self, request: web.Request) -> Operator:
        """Return the operator who sent a request, and store the operator in the request.

        Raises:
            web.HTTPException: As for `operator`.
        """
        request[OPERATOR] = operator = self.operator(request)
        request[IN_TELEGRAM] = operator.in_telegram
        return operator

    def operator(self, request: web.Request) -> Operator:
        """Return the operator who sent a request.

        Raises:
            web.HTTPException: The sender is not an operator; a browser is redirected to the login form.
        """
        if (known := self.session(request)) is not None:
            return known
        if self._token:
            return Operator(self._checked(request), self._csrf(""))
        if not is_loopback(request.remote or ""):
            raise web.HTTPForbidden(text="set web.token to open this page from another machine")
        if not is_own_name(request, self._settings.host):
            raise web.HTTPForbidden(text="open http://127.0.0.1 or http://localhost, or set web.token")
        return Operator(ANYBODY, self._csrf(""))

    def session(self, request: web.Request) -> Operator | None:
        """Return the operator whose session a request belongs to, or None if it belongs to none."""
        return self._sessions.get(request.cookies.get(COOKIE, ""))

    def begin(
        self, request: web.Request, name: str, wanted: str, *, in_telegram: bool = False, scheme: str = ""
    ) -> web.Response:
        """Begin an operator's session and redirect to the path `wanted`; for the other arguments, see `Operator`."""
        session = secrets.token_urlsafe(32)
        self._sessions[session] = Operator(name, self._csrf(session), True, in_telegram, scheme)
        response = see_other(wanted)
        request[IN_TELEGRAM] = in_telegram
        set_cookie(request, response, COOKIE, session, SESSION_SECONDS)
        log.info("an operator logged in", name=name, address=caller(request, self._proxies))
        return response

    def _checked(self, request: web.Request) -> str:
        """Return the name of the operator whose password is in the header."""
        if "Authorization" in request.headers:
            name, password = credentials(request)
            if self._is_right(request, password):
                return _tidy(name)
        elif "text/html" in request.headers.get("Accept", ""):
            if self._settings.public_url and request.headers.get("Sec-Fetch-Dest") == "iframe":
                raise web.HTTPSeeOther("/app")  # in Telegram's web client, which may not frame the login form
            wanted = request.path_qs if request.method == "GET" else "/"
            raise web.HTTPSeeOther(request.rel_url.with_path("/login").with_query(next=wanted))
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="thumbtune"'})

    def _is_right(self, request: web.Request, password: bytes) -> bool:
        """Return whether a password is right.

        Raises:
            web.HTTPTooManyRequests: Too many wrong passwords came from this address; this one was not checked.
        """
        address = caller(request, self._proxies)
        failures = self._failures.get(address, 0)
        if failures >= FAILURES:
            say = self._pages.say(request)
            raise web.HTTPTooManyRequests(
                text=say("Too many wrong passwords. Try again in a minute."), headers={"Retry-After": str(WAIT_SECONDS)}
            )
        if is_secret(password, self._token):
            return True
        self._failures[address] = failures + 1
        log.warning("wrong password for the operator page", address=address)
        return False

    async def _form(self, request: web.Request) -> web.Response:
        if not self._token:
            raise web.HTTPSeeOther("/")
        return self._pages.render(request, "login.html", next=local_path(request.query.get("next", "/")), wrong="")

    async def _log_in(self, request: web.Request) -> web.Response:
        """Begin a session if the password is right.

        This form has no CSRF token, because submitting it already requires the password.
        """
        form, say = await read_form(request), self._pages.say(request)
        wanted = local_path(form.get("next", "/"))
        try:
            if self._token and self._is_right(request, form.get("token", "").encode()):
                return self.begin(request, _tidy(form.get("name", "")), wanted)
            wrong, status = say("That's not the password."), 401
        except web.HTTPTooManyRequests as refusal:
            wrong, status = refusal.text or "", refusal.status
        return self._pages.render(request, "login.html", status=status, next=wanted, wrong=wrong, here=URL("/login"))

    async def _log_out(self, request: web.Request) -> web.Response:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        response = see_other("/app" if request[IN_TELEGRAM] else "/login")
        set_cookie(request, response, COOKIE, "", 0)
        return response

    def _csrf(self, session: str) -> str:
        """Return the token for the forms of a session, or of requests without a session.

        Only pages that such a request may see contain it, and other sites cannot read those pages.
        """
        return hmac.digest(self._key, session.encode(), "sha256").hex()


def _tidy(name: str) -> str:
    """Return an operator's name, shortened and without unprintable characters."""
    return "".join(each for each in name if each.isprintable()).strip()[:NAME_CHARACTERS] or ANYBODY
