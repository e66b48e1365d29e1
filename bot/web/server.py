"""The bot's web server: /health, /metrics, the operator page, run reports and Telegram's webhook.

The reports of a run are its loss curve and its comparison sheet. The webhook stores an update before answering
with status 200. The operator page gets its content from `Monitoring`; `bot.web.review` and
`bot.web.people` contain the pages about exchanges.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web

from bot.admin.monitoring import Monitoring
from bot.config import ConfigError, Settings
from bot.web import security
from bot.web.login import Login
from bot.web.metrics import render
from bot.web.mini_app import MiniApp
from bot.web.pages import Pages
from bot.web.security import caller, content_policy, harden, header, is_secret, is_within, read_body
from storage.errors import StorageError
from training.gate.comparison_sheet_translations import localized
from training.run_folder import CURVE, PICTURE, SHEET

WEBHOOK_PATH = "/telegram"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
SHUTDOWN_SECONDS = 0.5
HEADER_SECONDS = 60.0
"""A connection is closed after this long without a complete request, whether idle or with incomplete headers."""

MOST_BYTES = 4 * 1024 * 1024
RUN_FILES = {"loss.png": CURVE, "sheet.html": SHEET, "sheet.png": PICTURE}

log = structlog.get_logger()


@contextmanager
def listening(host: str, port: int, cure: str) -> Iterator[None]:
    """Convert an OSError from listening on the port into a ConfigError that ends with the fix, `cure`."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"Cannot listen on {host}:{port} ({why}): {cure}") from error


@dataclass(eq=False)
class WebServer:
    """The bot's web server. `start()` returns its address; `stop()` must be called at the end."""

    settings: Settings
    monitoring: Monitoring
    accept: Callable[[Any], Awaitable[None]]
    pages: Pages
    private: Sequence[web.RouteDef] = ()
    """Further routes, which serve only the operator."""

    _runner: web.AppRunner | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._login = Login(self.settings.web, self.settings.telegram.webhook.proxies, self.pages)

    async def start(self) -> str:
        """Start listening and return the server's URL, `http://host:port`."""
        app = web.Application(client_max_size=MOST_BYTES, middlewares=[self._login.error_pages()])
        app.on_response_prepare.append(harden)
        self.pages.set_up(app)
        private = [
            web.get("/metrics", self._metrics),
            web.get("/", self._page),
            web.get(f"/runs/{{run:[0-9]{{1,18}}}}/{{file:{'|'.join(map(re.escape, RUN_FILES))}}}", self._run_file),
            *self.private,
        ]
        app.add_routes([web.get("/health", self._health), *self._login.routes()])
        app.add_routes([web.route(each.method, each.path, self._login.private(each.handler)) for each in private])
        if self.settings.web.public_url:
            app.add_routes(MiniApp(self.settings.telegram, self._login, self.pages).routes())
        if self.settings.telegram.mode == "webhook":
            app.router.add_post(WEBHOOK_PATH, self._webhook)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=HEADER_SECONDS,
            lingering_time=security.BODY_SECONDS,
        )
        await self._runner.setup()
        wanted = self.settings.web
        with listening(wanted.host, wanted.port, "set web.port to a free port"):
            await web.TCPSite(self._runner, wanted.host, wanted.port).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        if self._runner:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        """Answer with status 200 or 503, with details only if the caller may see the operator page."""
        services = await self.monitoring.ping()
        well = all(state == "ok" for state in services.values())
        body: dict[str, Any] = {"status": "ok" if well else "failing"}
        with suppress(web.HTTPException):
            self._login.operator(request)
            body["services"] = services
        return web.json_response(body, status=200 if well else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = render(*await self.monitoring.numbers(), self.monitoring.histograms())
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _page(self, request: web.Request) -> web.Response:
        return self.pages.render(request, "operator.html", it=await self.monitoring.overview())

    async def _run_file(self, request: web.Request) -> web.StreamResponse:
        say = self.pages.say(request)
        run, name = int(request.match_info["run"]), RUN_FILES[request.match_info["file"]]
        path = await self.monitoring.run_file(run, localized(name, say.language))
        path = path or await self.monitoring.run_file(run, name)
        if path is None:
            raise web.HTTPNotFound(text=say("This run has no such file."))
        is_page = path.suffix == ".html"
        policy = content_policy(request, await asyncio.to_thread(path.read_bytes) if is_page else b"", framed=is_page)
        return web.FileResponse(path, headers={"Content-Security-Policy": policy})

    async def _webhook(self, request: web.Request) -> web.Response:
        webhook = self.settings.telegram.webhook
        if webhook.networks and not is_within(caller(request, webhook.proxies), webhook.networks):
            raise web.HTTPForbidden(text="the caller is not in telegram.webhook.networks")
        if not is_secret(header(request, SECRET_HEADER), webhook.secret.get_secret_value()):
            raise web.HTTPForbidden(text="wrong secret token")
        try:
            update = json.loads(await read_body(request))
        except (ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text="not JSON") from error
        try:
            await self.accept(update)
        except ValueError as error:
            raise web.HTTPBadRequest(text="not an update") from error
        except StorageError as error:
            log.error("an update could not be stored", error=str(error))
            raise web.HTTPServiceUnavailable(text="not stored; send it again") from error
        return web.Response()
