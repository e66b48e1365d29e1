"""Helpers for deployment tests: a deployment with fake engines, and the deltas that a chat receives."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from inference.engines.commands import Command
from inference.messages import Answer, Delta
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from tests.support.children import alive, fake_command, notes, prompt, until

QUICK: dict[str, Any] = {
    "engine": "cpu",
    "concurrency": 8,
    "start_timeout": 20,
    "token_timeout": 20,
    "stop_timeout": 5,
    "restart_delay": 0.02,
}


def a_model(parent: Path, name: str, **cue: Any) -> Path:
    """Create and return a model directory for the fake engine."""
    directory = parent / name
    directory.mkdir(exist_ok=True)
    (directory / "cue.json").write_text(json.dumps(cue))
    return directory


def open_gate(directory: Path) -> None:
    """Release the answers that are waiting at the `gate` cue in this model directory."""
    (directory / "gate").touch()


Deploy = Callable[..., AbstractAsyncContextManager[Deployment]]


@asynccontextmanager
async def deployed(
    folder: Path,
    *,
    start: bool = True,
    cue: dict[str, Any] | None = None,
    command: Command = fake_command,
    warm_seconds: float = 1,
    **more: Any,
) -> AsyncIterator[Deployment]:
    """Yield a deployment of the model "a" in `folder`, and check at the end that no process is still running.

    Args:
        folder: The folder of the model and the logs.
        start: Whether to start the deployment.
        cue: The cues in the model directory, which the fake engine follows.
        command: The function that returns the command to start the engine.
        warm_seconds: The time limit of each warm-up in seconds.
        more: Inference settings.
    """
    settings = InferenceSettings.model_validate(QUICK | more)
    directory = a_model(folder, "a", **(cue or {}))
    deployment = Deployment(settings, "a", directory, logs=folder / "logs", command=command)
    with patch("inference.serving.prefix_warmup._SECONDS", warm_seconds):
        try:
            if start:
                await deployment.start()
            yield deployment
        finally:
            await deployment.stop()
    assert deployment.status().pids == ()
    assert not any(alive(note["pid"]) for name in os.listdir(folder) for note in notes(folder / name, "start"))


@dataclass
class Heard:
    """The response to one question: every delta, and the final text as the user sees it."""

    deltas: list[Delta]

    @property
    def answer(self) -> Answer:
        assert self.deltas[-1].answer is not None
        return self.deltas[-1].answer

    @property
    def restarts(self) -> int:
        return sum(delta.restarted for delta in self.deltas)

    @property
    def text(self) -> str:
        text = ""
        for delta in self.deltas:
            text = "" if delta.restarted else text + delta.text
        return text

    @property
    def pid(self) -> int:
        """The ID of the process that answered.

        Fails unless the words of the answer are in order and all come from one process of the model.
        """
        words = self.text.split()
        speakers = {tuple(word.split("/")[:2]) for word in words}
        assert len(speakers) == 1, self.text
        ((model, pid),) = speakers
        assert words == [f"{model}/{pid}/{number}" for number in range(len(words))]
        assert model == self.answer.model
        assert self.text == self.answer.text
        return int(pid)


async def ask(deployment: Deployment, text: str, chat: str = "chat", heard: list[Delta] | None = None) -> Heard:
    """Ask a question and return the complete response, appending the deltas to `heard`."""
    deltas = [] if heard is None else heard
    async with aclosing(deployment.answer(prompt(text, chat))) as stream:
        async for delta in stream:
            deltas.append(delta)
    return Heard(deltas)


async def under_way(deployment: Deployment, text: str, chat: str) -> tuple[asyncio.Task[Heard], list[Delta]]:
    """Ask a question; once the answer's first word arrives, return the task and the deltas received so far."""
    heard: list[Delta] = []
    asking = asyncio.create_task(ask(deployment, text, chat, heard))
    await until(lambda: asking.done() or any(delta.text for delta in heard))
    return asking, heard
