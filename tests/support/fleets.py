"""Helpers for tests of several replicas: external servers on loopback, and a deployment that uses them."""

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
    """External servers on loopback, one per port, started and swapped by `server_script.py`.

    `python` is the interpreter for CPU engines. Without it, the servers are fake engines; each serves its
    own directory as model "a" and so has its own notes.
    """

    def __init__(self, folder: Path, number: int, python: str = "") -> None:
        self.folder = folder
        self.python = python
        self.endpoints = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(number))
        os.mkfifo(folder / "lifeline")
        self._lifeline = os.open(folder / "lifeline", os.O_RDWR)

    @property
    def swap_command(self) -> tuple[str, ...]:
        """The command that a deployment runs to swap the model of a server."""
        return (*SCRIPT, str(self.folder), self.python, "{port}", "{model}", "{model_dir}")

    def directory(self, endpoint: str) -> Path:
        """Return the model directory that the fake server at `endpoint` serves first."""
        return a_model(self.folder, f"at-{_port(endpoint)}")

    async def start(self, endpoint: str, name: str = "a", directory: Path | None = None) -> None:
        """Start a server at `endpoint`, replacing the running one, if any."""
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
        """Send a signal to the server at `endpoint` if it is running."""
        with suppress(ProcessLookupError):
            os.kill(self.pid(endpoint), number)

    def freeze(self, endpoint: str) -> None:
        """Suspend the server at `endpoint`; its connections stay open."""
        os.kill(self.pid(endpoint), signal.SIGSTOP)

    async def end(self) -> None:
        os.close(self._lifeline)
        for note in self.folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(note.read_text()), signal.SIGKILL)

    def home(self, chat: str) -> str:
        """Return the chat's home: the endpoint that serves it while all are available."""
        return self.endpoints[ranked(chat, self.endpoints)[0]]

    def second(self, chat: str) -> str:
        """Return the endpoint that serves the chat when its home is unavailable."""
        return self.endpoints[ranked(chat, self.endpoints)[1]]

    def chat_at(self, endpoint: str, number: int = 0) -> str:
        """Return the name of a chat whose home is `endpoint`; each `number` gives a different chat."""
        names = (f"person {index}" for index in range(10_000))
        return [name for _, name in zip(range(100), names, strict=False) if self.home(name) == endpoint][number]

    def chats(self, number: int) -> list[str]:
        """Return the names of `number` chats, spread evenly over the servers."""
        return [self.chat_at(self.endpoints[i % len(self.endpoints)], i // len(self.endpoints)) for i in range(number)]


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def cued(directory: Path, **cue: int) -> Path:
    """Write cues for `server_script.py` to a model directory and return the directory."""
    (directory / "script.json").write_text(json.dumps(cue))
    return directory


@asynccontextmanager
async def fleet(
    folder: Path, number: int, *, missing: int = 0, **more: Any
) -> AsyncIterator[tuple[Deployment, Servers]]:
    """Run a deployment of model "a" over `number` external fake engines.

    The last `missing` engines are not started. `more` holds settings for the deployment.
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
