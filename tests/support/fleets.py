"""Helpers for tests of several replicas: external servers on loopback, and a deployment over them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from inference.serving.deployment import Deployment
from inference.serving.engine_launch import free_port
from inference.serving.routing import ranked
from inference.settings import InferenceSettings
from tests.support.children import alive, until
from tests.support.deployments import QUICK, a_model

SCRIPT = (sys.executable, "-m", "tests.support.server_script")


class Servers:
    """External servers on loopback, one a port, started and swapped by the script of `server_script.py`.

    `python` runs CPU engines. Without it they are fake and serve, as model "a", a directory of their own, so that each
    has its own notes.
    """

    def __init__(self, folder: Path, number: int, python: str = "") -> None:
        self.folder = folder
        self.python = python
        self.endpoints = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(number))
        os.mkfifo(folder / "lifeline")
        self._lifeline = os.open(folder / "lifeline", os.O_RDWR)

    @property
    def swap_command(self) -> tuple[str, ...]:
        """Return the command with which a deployment swaps one of them."""
        return (*SCRIPT, str(self.folder), self.python, "{port}", "{model}", "{model_dir}")

    def directory(self, endpoint: str) -> Path:
        """Return the fake server's first model directory."""
        return a_model(self.folder, f"at-{_port(endpoint)}")

    async def start(self, endpoint: str, name: str = "a", directory: Path | None = None) -> None:
        """Start the server at this endpoint, or replace the running one."""
        line = (
            *SCRIPT,
            str(self.folder),
            self.python,
            _port(endpoint),
            name,
            str(directory or self.directory(endpoint)),
        )
        process = await asyncio.create_subprocess_exec(*line)
        assert await process.wait() == 0

    def pid(self, endpoint: str) -> int:
        return int((self.folder / f"{_port(endpoint)}.pid").read_text())

    async def kill(self, endpoint: str) -> None:
        pid = self.pid(endpoint)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))

    def signal(self, endpoint: str, number: signal.Signals) -> None:
        """Send the server a signal, if it is running."""
        with suppress(ProcessLookupError):
            os.kill(self.pid(endpoint), number)

    def freeze(self, endpoint: str) -> None:
        """Stop the server from responding while it keeps its connections."""
        os.kill(self.pid(endpoint), signal.SIGSTOP)

    async def end(self) -> None:
        os.close(self._lifeline)
        for note in self.folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(note.read_text()), signal.SIGKILL)

    def home(self, chat: str) -> str:
        """Return the endpoint of the chat while all are open."""
        return self.endpoints[ranked(chat, self.endpoints)[0]]

    def second(self, chat: str) -> str:
        """Return the endpoint of the chat when its home is closed."""
        return self.endpoints[ranked(chat, self.endpoints)[1]]

    def chat_at(self, endpoint: str, number: int = 0) -> str:
        """Return the name of a chat whose home is `endpoint`, a different one for each number."""
        names = (f"person {index}" for index in range(10_000))
        return [name for _, name in zip(range(100), names, strict=False) if self.home(name) == endpoint][number]

    def chats(self, number: int) -> list[str]:
        """Return `number` chats, spread evenly over the servers."""
        return [self.chat_at(self.endpoints[i % len(self.endpoints)], i // len(self.endpoints)) for i in range(number)]


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def cued(directory: Path, **cue: int) -> Path:
    """Cue the script for this model directory."""
    (directory / "script.json").write_text(json.dumps(cue))
    return directory


@asynccontextmanager
async def fleet(
    folder: Path, number: int, *, missing: int = 0, **more: Any
) -> AsyncIterator[tuple[Deployment, Servers]]:
    """Run a deployment of model "a" over `number` external fake engines, the last `missing` of them not started.

    `more` are settings.
    """
    servers = Servers(folder, number)
    values = {key: value for key, value in QUICK.items() if key != "engine"} | {
        "endpoints": servers.endpoints,
        "swap_command": servers.swap_command,
    }
    settings = InferenceSettings.model_validate(values | more)
    deployment = Deployment(settings, "a", a_model(folder, "a"), logs=folder / "logs")
    try:
        for endpoint in servers.endpoints[: number - missing]:
            await servers.start(endpoint)
        await deployment.start()
        yield deployment, servers
    finally:
        await deployment.stop()
        await servers.end()
