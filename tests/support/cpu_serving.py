"""The CPU engine as a process for tests, with an HTTP client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file, save_file

from inference.engines.access_key import KEY_VARIABLE
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture
from tests.support.generating import engine_ends

NAME = "tiny-endless"
START_SECONDS = 120.0
KEY = "the-key-of-this-launch"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def endless(directory: Path) -> Path:
    """Write a copy of internvl2-tiny that never generates a stop token, and return its directory."""
    shutil.copytree(CHECKPOINT, directory)
    weights = load_file(directory / "model.safetensors")
    weights["language_model.output.weight"][list(engine_ends(load_tokenizer(CHECKPOINT)))] = 0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@dataclass(frozen=True)
class Served:
    """A running CPU engine server and an HTTP client for it."""

    process: subprocess.Popen[str]
    http: httpx.Client
    directory: Path

    def until_ready(self) -> list[int]:
        """Poll /health until it returns 200, and return all status codes received."""
        statuses = list[int]()
        deadline = time.monotonic() + START_SECONDS
        while not statuses or statuses[-1] != 200:
            assert time.monotonic() < deadline
            statuses.append(self.http.get("/health").status_code)
            time.sleep(0.01)
        return statuses

    def complete(self, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Request an answer without streaming and return the response."""
        response = self.http.post("/v1/chat/completions", json=body(*messages, **fields))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refusal(self, status: int, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Send a request that must be refused with `status`, and return the error."""
        response = self.http.post("/v1/chat/completions", json=body(*messages, **fields))
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    def chunks(self, *messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
        """Request a streamed answer and return all its chunks."""
        request = body(*messages, stream=True, **fields)
        with self.http.stream("POST", "/v1/chat/completions", json=request) as response:
            assert response.headers["content-type"] == "text/event-stream"
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def metric(self, name: str) -> float:
        """Return the value of the metric `name`."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"thumbtune_engine_{name} "):
                return float(line.split()[-1])
        return 0.0

    def wait_for(self, name: str, value: float) -> None:
        """Wait until the metric `name` equals `value`."""
        deadline = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)


@contextmanager
def started(directory: Path, *flags: str, threads: str = "1", timeout: float = 60) -> Iterator[Served]:
    """Start a server for a checkpoint; at the end, stop it by closing its standard input, unless a test killed it.

    Args:
        directory: The checkpoint's directory.
        flags: Additional arguments for the server.
        threads: Number of compute threads; if empty, the server's default.
        timeout: Time limit for each of the client's requests, in seconds.
    """
    line = [
        sys.executable,
        "-m",
        "inference.engines.cpu.server",
        "--model",
        str(directory),
        "--name",
        NAME,
        "--port",
        "0",
    ]
    with subprocess.Popen(
        [*line, *(("--threads", threads) if threads else ()), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_VARIABLE: KEY},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            with httpx.Client(base_url=address, headers=HEADERS, timeout=timeout, trust_env=False) as http:
                yield Served(process, http, directory)
        finally:
            killed = process.poll() == -signal.SIGKILL
            process.stdin.close()
            assert killed or process.wait(30) in (0, 1)


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the body of a request for a short answer with greedy decoding, unless `fields` override that."""
    return {"model": NAME, "messages": list(messages), "temperature": 0, "max_tokens": 12, **fields}


def question(text: str, *pictures: Picture) -> dict[str, Any]:
    """Return a user message with text and pictures."""
    return {"role": "user", "content": [*(image(shown.data) for shown in pictures), {"type": "text", "text": text}]}


def image(data: bytes, media_type: str = "image/jpeg") -> dict[str, Any]:
    """Return a picture as a content part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{b64encode(data).decode()}"}}


def words(answer: dict[str, Any]) -> str:
    """Return the text of an answer."""
    text: str = answer["choices"][0]["message"]["content"]
    return text
