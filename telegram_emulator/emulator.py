"""The emulator's HTTP server: the Bot API, its files, injected faults, the user API and the chat page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from telegram_emulator.api_errors import BotApiError, Json, api_error, too_many_requests
from telegram_emulator.faults import Fault, FaultKind, Faults
from telegram_emulator.flood_control import FloodControl
from telegram_emulator.methods import METHODS
from telegram_emulator.parameters import MAX_REQUEST_BYTES, Parameters, read_form
from telegram_emulator.people_http import PeopleHttp
from telegram_emulator.person_actions import PersonActions
from telegram_emulator.sample_voters import SampleConversation, SampleVoters
from telegram_emulator.world import CallCounts, World, fresh_number

PAGE = Path(__file__).parent / "page"
_PROXY_PAGE = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>"
)


class Emulator:
    """A Bot API server for one bot.

    Args:
        token: The bot's token.
        samples: JPEG pictures and WebP stickers, keyed by name, that the chat page offers.
        note: A line that the chat page shows before the samples.
        conversations: A function that takes the number of a round, starting at 0, and returns the sample
            voters' script for it.
        likes: A function that takes the text of an answer and returns whether a sample voter likes it.
        first_id: The ID of both the first update and the first message; by default, it is above all IDs of
            earlier emulators.
        clock: A function that returns the current time in seconds, used for flood control.
    """

    def __init__(
        self,
        *,
        token: str = "4242:emulator",
        samples: Mapping[str, bytes] | None = None,
        note: str = "",
        conversations: Callable[[int], Sequence[SampleConversation]] | None = None,
        likes: Callable[[str], bool] | None = None,
        first_id: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token = token
        self.faults = Faults()
        first = fresh_number() if first_id is None else first_id
        self.world = World(int(token.partition(":")[0]), first, FloodControl(clock=clock))
        self.flood = self.world.flood
        self.add_person = self.world.add_user
        self.add_group = self.world.add_group
        self.people = PersonActions(self.world)
        self.voters = SampleVoters(self.world, self.people, likes, conversations)
        self.calls: dict[str, int] = {}
        self._people_http = PeopleHttp(self.world, self.people, self.voters, samples or {}, note)
        self._runner: web.AppRunner | None = None

    def show_learning(self, source: Callable[[], Awaitable[Json]]) -> None:
        """Let the chat page base its hint on the bot's learning status, which `source` returns.

        The keys are those of `telegram_emulator.people_http.NO_LEARNING`.
        """
        self._people_http.learning_source = source

    def counts(self, chat: int) -> CallCounts:
        """Return how many messages the bot sent, edited and deleted in a chat."""
        return self.world.chats[chat].counts

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Start listening on `host` and `port`, and return the server's address without a trailing slash.

        Port 0 selects a free port. Raises `OSError` if the port is in use.
        """
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_route("*", "/bot{token:[^/]+}/{method}", self._call)
        app.router.add_get("/file/bot{token:[^/]+}/{path:.+}", self._download)
        app.add_routes(self._people_http.routes())
        app.router.add_get("/", self._page)
        app.router.add_static("/page", PAGE)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError:
            await self.stop()
            raise
        bound = self._runner.addresses[0]
        return f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop the server and its tasks, but keep the state."""
        await self.voters.stop()
        await self.world.webhook.stop()
        self.world.updates.wake()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _page(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    async def _call(self, request: web.Request) -> web.StreamResponse:
        """Handle one Bot API call, applying the fault planned for it, if any."""
        method = request.match_info["method"].lower()
        try:
            if request.match_info["token"] != self.token:
                raise BotApiError(401, "Unauthorized")
            if method not in METHODS:
                raise api_error("method not found", 404)
            texts, uploads = await read_form(request)
            parameters = Parameters(texts, dict(uploads))
            self.calls[method] = self.calls.get(method, 0) + 1
            fault = self.faults.strike(method, parameters.integer("chat_id") or None) if self.faults.planned else None
            if fault is not None and (failure := await self._fail(request, fault)) is not None:
                return failure
            result = await METHODS[method](self.world, parameters)
            if fault is not None and fault.kind is FaultKind.RESET_AFTER:
                return _broken(request)
            if fault is not None and fault.kind is FaultKind.CUT_OFF:
                return web.Response(text=json.dumps({"ok": True, "result": result})[:-2])
        except BotApiError as error:
            return web.json_response(error.body(), status=error.code)
        return web.json_response({"ok": True, "result": result})

    async def _fail(self, request: web.Request, fault: Fault) -> web.Response | None:
        """Apply a fault; return a response in place of the call's result, or None if the call is to proceed."""
        match fault.kind:
            case FaultKind.BAD_GATEWAY:
                raise BotApiError(502, "Bad Gateway")
            case FaultKind.HTML_PAGE:
                return web.Response(text=_PROXY_PAGE, content_type="text/html", status=502)
            case FaultKind.FLOOD:
                raise too_many_requests(max(1, round(fault.seconds)))
            case FaultKind.REFUSED:
                moved = {} if fault.moved_to is None else {"migrate_to_chat_id": fault.moved_to}
                raise BotApiError(400, f"Bad Request: {fault.words}", **moved)
            case FaultKind.RESET_BEFORE:
                return _broken(request)
            case FaultKind.DELAY:
                await asyncio.sleep(fault.seconds)
        return None

    async def _download(self, request: web.Request) -> web.Response:
        """Return the file whose path `getFile` reported."""
        file = self.world.files.by_path(request.match_info["path"])
        if request.match_info["token"] != self.token or file is None:
            return web.json_response(BotApiError(404, "Not Found").body(), status=404)
        return web.Response(body=file.data, content_type="application/octet-stream")


def _broken(request: web.Request) -> web.Response:
    """Abort the connection without a response."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
