"""Helpers for tests of several engines: an external server on loopback, and engines on several GPUs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inference.serving.deployment import Deployment
from inference.serving.engine_launch import free_port
from inference.serving.routing import ranked
from inference.settings import InferenceSettings
from tests.support.children import alive, fake_command, until
from tests.support.deployments import a_model, deployed


@asynccontextmanager
async def external_server(folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """Run a fake engine that the bot did not start, and yield its address and its model directory."""
    port = free_port()
    directory = a_model(folder, "external")
    line = fake_command("a", directory, port, InferenceSettings())
    process = await asyncio.create_subprocess_exec(*line, stdin=asyncio.subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{port}", directory
    finally:
        process.kill()
        await process.wait()


class Fleet:
    """A deployment of model "a" on several GPUs, each with its own engine."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.names = tuple(node.name for node in deployment.status().nodes)

    def pid(self, name: str) -> int:
        """Return the process ID of the engine on the GPU `name`."""
        node = next(each for each in self.deployment._nodes if each.name == name)
        assert node.slots.live.pid is not None
        return node.slots.live.pid

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to the engine on the GPU `name`, and return its process ID."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    async def kill(self, name: str) -> int:
        """Kill the engine on the GPU `name`, and return its process ID."""
        pid = self.signal(name, signal.SIGKILL)
        await until(lambda: not alive(pid))
        return pid

    def home(self, chat: str) -> str:
        """Return the GPU that serves the chat while all engines are available."""
        return self.names[ranked(chat, self.names)[0]]

    def second(self, chat: str) -> str:
        """Return the GPU that serves the chat when its home is unavailable."""
        return self.names[ranked(chat, self.names)[1]]

    def chats(self, number: int) -> list[str]:
        """Return the names of `number` chats, spread evenly over the GPUs."""
        names = [f"person {index}" for index in range(100 * number)]
        homes = {name: [each for each in names if self.home(each) == name] for name in self.names}
        return [homes[self.names[i % len(self.names)]][i // len(self.names)] for i in range(number)]


@asynccontextmanager
async def fleet(folder: Path, number: int, **more: Any) -> AsyncIterator[Fleet]:
    """Run a deployment on `number` GPUs with fake engines; `more` holds settings and the arguments of `deployed`."""
    async with deployed(folder, gpus=range(number), **more) as deployment:
        yield Fleet(deployment)
