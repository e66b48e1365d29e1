"""The bot's own web server: /health, /metrics, the operator page, each run's curve and sheet, and Telegram's webhook.

Knows HTTP and who may look; what there is to see comes from the `Vitals`. The webhook stores an update before
it answers 200.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import aiohttp_jinja2
import jinja2
import structlog
from aiohttp import web

from bot.config import Settings
from bot.listening import listening
from bot.progress import outcome
from bot.vitals import Vitals
from bot.web.metrics import render
from storage.errors import UnknownRecord
from training.figures import clock
from training.run_folder import CURVE, PICTURE, SHEET

WEBHOOK_PATH = "/telegram"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
SHUTDOWN_SECONDS = 0.5
RUN_FILES = {"loss.png": CURVE, "sheet.html": SHEET, "sheet.png": PICTURE}
TEMPLATES = Path(__file__).parent / "templates"

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Network = IPv4Network | IPv6Network


class WebServer:
    """Starts with `start()`, which returns the address it listens on; ends with `stop()`."""

    def __init__(self, settings: Settings, vitals: Vitals, accept: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self._settings = settings
        self._vitals = vitals
        self._accept = accept
        self._token = settings.web.token.get_secret_value()
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; returns the address, `http://host:port`."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        environment = aiohttp_jinja2.setup(app, loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        environment.filters["when"] = _when
        environment.filters["clock"] = clock
        environment.filters["outcome"] = outcome
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/metrics", self._private(self._metrics)),
                web.get("/", self._private(self._page)),
                *(
                    web.get(rf"/runs/{{run:\d+}}/{{file:{name}}}", self._private(self._run_file))
                    for name in map(re.escape, RUN_FILES)
                ),
            ]
        )
        if self._settings.telegram.mode == "webhook":
            app.router.add_post(WEBHOOK_PATH, self._webhook)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        wanted = self._settings.web
        with listening(wanted.host, wanted.port, "set web.port to one that is free"):
            await web.TCPSite(self._runner, wanted.host, wanted.port).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        if self._runner:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        services = await self._vitals.ping()
        well = all(state == "ok" for state in services.values())
        body = {"status": "ok" if well else "failing", "services": services}
        return web.json_response(body, status=200 if well else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = render(*await self._vitals.numbers())
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _page(self, request: web.Request) -> web.Response:
        overview = await self._vitals.overview()
        page: web.Response = aiohttp_jinja2.render_template("operator.html", request, {"it": overview})
        return page

    async def _run_file(self, request: web.Request) -> web.StreamResponse:
        try:
            path = await self._vitals.run_file(int(request.match_info["run"]), RUN_FILES[request.match_info["file"]])
        except UnknownRecord as error:
            raise web.HTTPNotFound(text=str(error)) from error
        if path is None:
            raise web.HTTPNotFound(text="this run has none (yet)")
        return web.FileResponse(path)

    async def _webhook(self, request: web.Request) -> web.Response:
        webhook = self._settings.telegram.webhook
        if webhook.networks and not _within(_caller(request, webhook.proxies), webhook.networks):
            raise web.HTTPForbidden(text="not a network of telegram.webhook.networks")
        expected = webhook.secret.get_secret_value()
        if not hmac.compare_digest(request.headers.get(SECRET_HEADER, "").encode(), expected.encode()):
            raise web.HTTPForbidden(text="wrong secret token")
        try:
            update = await request.json()
            int(update["update_id"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text="not an update") from error
        await self._accept(update)
        return web.Response()

    def _private(self, handler: Handler) -> Handler:
        """Let in who knows `web.token` (as the password of basic authentication), or this machine without one."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if self._token:
                if not hmac.compare_digest(_password(request).encode(), self._token.encode()):
                    raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="thumbtune"'})
            elif not _local(request):
                raise web.HTTPForbidden(text="set web.token to look from another machine")
            return await handler(request)

        return guarded


def _password(request: web.Request) -> str:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return encoded.strip()
    try:
        return b64decode(encoded, validate=True).decode().partition(":")[2]
    except (Base64Error, UnicodeDecodeError):
        return ""


def _caller(request: web.Request, proxies: Sequence[Network]) -> str:
    """The address that calls: the last one that a proxy of ours has not added itself."""
    caller = request.remote or ""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while forwarded and _within(caller, proxies):
        caller = forwarded.pop().strip() or caller
    return caller


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


def _local(request: web.Request) -> bool:
    try:
        return ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")
