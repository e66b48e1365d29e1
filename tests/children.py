"""What tests of child processes share: is it alive, and waiting until something holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Return as soon as `holds()` is true; TimeoutError when it does not become so."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 — what is waited for happens in other processes
            await asyncio.sleep(0.02)
