"""The lmdeploy worker (lmdeploy_on_cpu.py) as a process for tests, with an HTTP client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from inference.engines.access_key import KEY_VARIABLE
from inference.engines.http_client import HttpEngine
from inference.messages import Prompt
from inference.serving.engine_launch import free_port

START_SECONDS = 120.0
KEY = "the-key-of-this-launch"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Served:
    """A running server, with the record of TurboMind's inputs and the server's log."""

    url: str
    model: Path
    record: Path
    log: Path
    command: Sequence[str]
    process: subprocess.Popen[bytes]

    def given(self) -> list[dict[str, Any]]:
        """Return TurboMind's input for each request, oldest first."""
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []

    @asynccontextmanager
    async def client(self, tiles: int | None = None) -> AsyncIterator[HttpEngine]:
        """Yield the bot's own HTTP client for this server."""
        engine = HttpEngine(self.url, "model", tiles=tiles, api_key=KEY)
        try:
            yield engine
        finally:
            await engine.aclose()

    def until_ready(self) -> None:
        """Wait until /health returns 200."""
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def until_ended(self) -> None:
        """Wait for the process to end by itself."""
        self.process.wait(START_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
        """Ask "What is this?" about content parts and return the response.

        Decoding is greedy and limited to one token unless `fields` override that.
        """
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]
        body = {"model": "model", "messages": messages, "temperature": 0, "max_tokens": 1, **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=HEADERS, trust_env=False, timeout=60)

    def get(self, path: str) -> httpx.Response:
        """Send a GET request for `path` with the access key."""
        return httpx.get(f"{self.url}{path}", headers=HEADERS, trust_env=False)

    def unstreamed(self, prompt: Prompt) -> str:
        """Request an answer to a prompt with one question, without streaming, and return the answer."""
        (turn,) = prompt.turns
        shown = [part(each.data) for each in turn.pictures]
        messages = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": [*shown, {"type": "text", "text": turn.text}]},
        ]
        reply = self.post(messages=messages, max_tokens=prompt.sampling.max_new_tokens)
        text: str = reply.json()["choices"][0]["message"]["content"]
        return text

    def metrics(self) -> str:
        """Return the text of /metrics."""
        return self.get("/metrics").text

    def metric(self, name: str) -> float:
        """Return the value of the metric `name`."""
        found = re.search(rf"^{name} (\S+)$", self.metrics(), re.MULTILINE)
        assert found, f"{name} is not on /metrics"
        return float(found[1])


@contextmanager
def started(folder: Path, name: str, model: Path, python: Sequence[str], *flags: str) -> Iterator[Served]:
    """Start a server and, at the end, stop it by closing its standard input.

    `python` holds the arguments for the Python interpreter that select the program to run.
    """
    port = free_port()
    record, written = folder / f"{name}.jsonl", folder / f"{name}.log"
    line = [sys.executable, "-W", "ignore", *python, str(record), "--model", str(model), "--name", "model"]
    line += ["--port", str(port), *flags]
    environment = {**os.environ, KEY_VARIABLE: KEY}
    with (
        written.open("w") as log,
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment) as process,
    ):
        assert process.stdin is not None
        try:
            yield Served(f"http://127.0.0.1:{port}", model, record, written, line, process)
        finally:
            process.stdin.close()
            process.wait(30)


def part(data: bytes, **more: Any) -> dict[str, Any]:
    """Return a picture as a content part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{b64encode(data).decode()}", **more}}
