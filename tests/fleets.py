"""What tests of several nodes share: servers on loopback that somebody else runs, and a deployment over them."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inference.deployment import Deployment
from inference.process import Child
from inference.routing import ranked
from inference.settings import InferenceSettings
from inference.worker import free_port
from tests.children import fake_command
from tests.deployments import QUICK, a_model


class Servers:
    """Fake engines as external servers, one a port; each serves the model directory `a` of its own folder."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(number)]
        self.endpoints = tuple(f"http://127.0.0.1:{port}" for port in self.ports)
        self._children: dict[str, Child] = {}

    def directory(self, endpoint: str) -> Path:
        """The model directory of the server there."""
        return a_model(self.folder, f"at-{endpoint.rpartition(':')[2]}")

    async def start(self, endpoint: str) -> None:
        directory = self.directory(endpoint)
        line = fake_command("a", directory, int(endpoint.rpartition(":")[2]), InferenceSettings())
        self._children[endpoint] = await Child.start(line, log=self.folder / f"{directory.name}.log")

    async def kill(self, endpoint: str) -> None:
        child = self._children.pop(endpoint)
        child.kill()
        await child.wait()

    def freeze(self, endpoint: str) -> None:
        """The server holds its connections and says nothing more."""
        os.kill(self._children[endpoint].pid, signal.SIGSTOP)

    def pid(self, endpoint: str) -> int:
        return self._children[endpoint].pid

    async def end(self) -> None:
        for endpoint in list(self._children):
            await self.kill(endpoint)

    def home(self, chat: str) -> str:
        """Where the chat goes while all are open."""
        return self.endpoints[ranked(chat, self.endpoints)[0]]

    def second(self, chat: str) -> str:
        """Where it goes when its home is closed."""
        return self.endpoints[ranked(chat, self.endpoints)[1]]

    def chats(self, number: int) -> list[str]:
        """Chats of which at least one lives at each server."""
        names = [f"person {index}" for index in range(number)]
        extra = 0
        while len({self.home(name) for name in names}) < len(self.endpoints):
            extra += 1
            names[extra % number] = f"person {number + extra}"
        return names


@asynccontextmanager
async def fleet(
    folder: Path, number: int, *, missing: int = 0, **more: Any
) -> AsyncIterator[tuple[Deployment, Servers]]:
    """A started deployment of model "a" over so many external fake engines, the last `missing` of them not there.

    `more` are settings.
    """
    servers = Servers(folder, number)
    values = {key: value for key, value in QUICK.items() if key != "engine"} | {"endpoints": servers.endpoints} | more
    deployment = Deployment(InferenceSettings.model_validate(values), "a", a_model(folder, "a"), logs=folder / "logs")
    try:
        for endpoint in servers.endpoints[: number - missing]:
            await servers.start(endpoint)
        await deployment.start()
        yield deployment, servers
    finally:
        await deployment.stop()
        await servers.end()
