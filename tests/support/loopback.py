"""Servers on loopback for tests, each on a free port."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, Self

from aiohttp import web


class LoopbackServer:
    """A server with the routes that `routes` returns; use as an async context manager, which sets `url`."""

    max_bytes: ClassVar[int] = 2**20
    """The maximum size of a request body, in bytes."""

    url: str

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the server's routes."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=self.max_bytes)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
