"""Helpers for tests of child processes: liveness, waiting, and the fake engine's notes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.messages import Prompt, Role, Turn
from inference.settings import InferenceSettings

FAKE = Path(__file__).with_name("fake_engine.py")


def fake_command(model_id: str, model_dir: Path, port: int, _: InferenceSettings) -> list[str]:
    """Return the command line that starts a fake engine in place of a real one."""
    return [sys.executable, str(FAKE), "--model", str(model_dir), "--name", model_id, "--port", str(port)]


def notes(directory: Path, *events: str) -> list[dict[str, Any]]:
    """Return the notes about `events` that fake engines wrote to a model directory, oldest first.

    A note that is being written is left out.
    """
    path = directory / "events.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [note for note in map(json.loads, lines) if note["event"] in events]


def prompt(text: str, chat: str = "chat") -> Prompt:
    """Return a prompt that asks `text`, in which the fake engine looks for its cues."""
    return Prompt("Be kind.", (Turn(Role.USER, text),), chat)


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `holds()` is true; raise TimeoutError after `seconds` seconds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)
