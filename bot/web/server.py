"""The bot's web server: /health, /metrics, the operator page, run reports and Telegram's webhook.

The reports of a run are its loss curve and its sheet. The webhook stores an update before answering
with status 200. The pages get their content from `Monitoring`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp_jinja2
import jinja2
import structlog
from aiohttp import web

from bot.admin.canary_standing import standing_text
from bot.admin.monitoring import Monitoring
from bot.admin.progress import MODEL_STATES, RUN_STATES, outcome
from bot.config import ConfigError, Settings
from bot.i18n import Say, Translator, later
from bot.web.metrics import render
from bot.web.security import (
    caller,
    content_policy,
    harden,
    header,
    is_loopback,
    is_own_name,
    is_secret,
    is_within,
    password,
)
from storage.errors import StorageError, UnknownRecord
from training.gate.sheet_words import localised
from training.number_format import clock
from training.run_folder import CURVE, PICTURE, SHEET

WEBHOOK_PATH = "/telegram"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
SHUTDOWN_SECONDS = 0.5
HEADER_SECONDS = 60.0
"""A connection is closed after this long without a complete request, idle or with incomplete headers."""

BODY_SECONDS = 30.0
MOST_BYTES = 4 * 1024 * 1024
RUN_FILES = {"loss.png": CURVE, "sheet.html": SHEET, "sheet.png": PICTURE}
COUNTED = {
    "users": later("people"),
    "chats": later("chats"),
    "sessions": later("conversations"),
    "exchanges": later("answers"),
    "pictures": later("pictures"),
    "votes": later("votes"),
    "ups": later("liked"),
    "downs": later("disliked"),
    "runs": later("runs"),
    "models": later("models"),
    "updates_pending": later("updates in the queue"),
    "updates_set_aside": later("dead letters"),
    "replies_doubtful": later("unconfirmed replies"),
}
TRIGGERS = {"admin": later("admin"), "schedule": later("schedule"), "command": later("command line")}
TEMPLATES = Path(__file__).parent / "templates"

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def listening(host: str, port: int, cure: str) -> Iterator[None]:
    """Convert an OSError from listening on the port into a ConfigError that ends with the fix, `cure`."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"Nothing can listen on {host}:{port} ({why}): {cure}") from error


@dataclass(eq=False)
class WebServer:
    """The bot's web server. `start()` returns its address; `stop()` must be called at the end."""

    settings: Settings
    monitoring: Monitoring
    accept: Callable[[Any], Awaitable[None]]
    translator: Translator

    _runner: web.AppRunner | None = field(default=None, init=False)

    async def start(self) -> str:
        """Start listening and return the server's URL, `http://host:port`."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.on_response_prepare.append(harden)
        environment = aiohttp_jinja2.setup(
            app, loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        environment.filters["when"] = _when
        environment.filters["clock"] = clock
        environment.filters["outcome"] = outcome
        environment.filters["standing"] = standing_text
        environment.globals |= {
            "counted": COUNTED,
            "run_states": RUN_STATES | MODEL_STATES,
            "triggers": TRIGGERS,
            "languages": self.translator.languages,
        }
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/metrics", self._private(self._metrics)),
                web.get("/", self._private(self._page)),
                *(
                    web.get(rf"/runs/{{run:[0-9]{{1,18}}}}/{{file:{name}}}", self._private(self._run_file))
                    for name in map(re.escape, RUN_FILES)
                ),
            ]
        )
        if self.settings.telegram.mode == "webhook":
            app.router.add_post(WEBHOOK_PATH, self._webhook)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=HEADER_SECONDS,
            lingering_time=BODY_SECONDS,
        )
        await self._runner.setup()
        wanted = self.settings.web
        with listening(wanted.host, wanted.port, "set web.port to one that is free"):
            await web.TCPSite(self._runner, wanted.host, wanted.port).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        if self._runner:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        """Answer with status 200 or 503, and say what is wrong only if the caller may see the operator page."""
        services = await self.monitoring.ping()
        well = all(state == "ok" for state in services.values())
        body: dict[str, Any] = {"status": "ok" if well else "failing"}
        if self._refusal(request) is None:
            body["services"] = services
        return web.json_response(body, status=200 if well else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = render(*await self.monitoring.numbers())
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _page(self, request: web.Request) -> web.Response:
        overview = await self.monitoring.overview()
        context = {"it": overview, "say": self._say(request)}
        page = aiohttp_jinja2.render_string("operator.html", request, context).encode()
        headers = {"Content-Security-Policy": content_policy(page)}
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)

    def _say(self, request: web.Request) -> Say:
        """Return the translator for the language in the page's URL or, if none is given, the browser's language."""
        return self.translator.to(request.query.get("language"), *_preferred(request))

    async def _run_file(self, request: web.Request) -> web.StreamResponse:
        try:
            run, name = int(request.match_info["run"]), RUN_FILES[request.match_info["file"]]
            path = await self.monitoring.run_file(run, localised(name, self._say(request).language))
            path = path or await self.monitoring.run_file(run, name)
        except UnknownRecord as error:
            raise web.HTTPNotFound(text=str(error)) from error
        if path is None:
            raise web.HTTPNotFound(text="this run has none (yet)")
        policy = content_policy(await asyncio.to_thread(path.read_bytes) if path.suffix == ".html" else b"")
        return web.FileResponse(path, headers={"Content-Security-Policy": policy})

    async def _webhook(self, request: web.Request) -> web.Response:
        webhook = self.settings.telegram.webhook
        if webhook.networks and not is_within(caller(request, webhook.proxies), webhook.networks):
            raise web.HTTPForbidden(text="not a network of telegram.webhook.networks")
        if not is_secret(header(request, SECRET_HEADER), webhook.secret.get_secret_value()):
            raise web.HTTPForbidden(text="wrong secret token")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                update = json.loads(await request.read())
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(text="the body took too long") from error
        except (ValueError, RecursionError, web.RequestPayloadError) as error:
            raise web.HTTPBadRequest(text="not JSON") from error
        try:
            await self.accept(update)
        except ValueError as error:
            raise web.HTTPBadRequest(text="not an update") from error
        except StorageError as error:
            log.error("an update could not be stored", error=str(error))
            raise web.HTTPServiceUnavailable(text="not stored; send it again") from error
        return web.Response()

    def _private(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if refusal := self._refusal(request):
                raise refusal
            return await handler(request)

        return guarded

    def _refusal(self, request: web.Request) -> web.HTTPException | None:
        """Return an error unless the request has `web.token` or, if no token is set, comes from this machine."""
        if token := self.settings.web.token.get_secret_value():
            if is_secret(password(request), token):
                return None
            return web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="thumbtune"'})
        if not is_loopback(request.remote or ""):
            return web.HTTPForbidden(text="set web.token to look from another machine")
        if not is_own_name(request, self.settings.web.host):
            return web.HTTPForbidden(text="open http://127.0.0.1 or http://localhost, or set web.token")
        return None


def _preferred(request: web.Request) -> list[str]:
    """Return the languages in the Accept-Language header, most preferred first."""
    ranked = []
    for each in request.headers.get("Accept-Language", "").split(","):
        tag, _, quality = each.partition(";q=")
        try:
            ranked.append((-float(quality or 1), tag.strip()))
        except ValueError:
            continue
    return [tag for _, tag in sorted(ranked, key=lambda each: each[0])]


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")
