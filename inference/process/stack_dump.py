"""Stack traces of a hanging child process, written to its standard error in response to a signal.

The child calls `enable`; its parent calls `processes` and `request`. Python's faulthandler writes the
traces inside the signal handler, even while another thread holds the GIL. This module requires Linux
(/proc) and uses only the standard library.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

SIGNAL: Final = signal.SIGUSR1

_POLL_SECONDS: Final = 0.02
_WRITE_SECONDS: Final = 3.0


def enable() -> None:
    """Make this process and its forked children write their stack traces when they receive `SIGNAL` or crash."""
    faulthandler.enable()
    faulthandler.register(SIGNAL)


def processes(pid: int) -> list[int]:
    """Return the IDs of process `pid` and its descendants, leaving out any that do not handle `SIGNAL`.

    The signal would terminate a process that has no handler for it.
    """
    known = {int(file.name): _status(int(file.name)) for file in Path("/proc").glob("[0-9]*")}
    family = [pid]
    for parent in family:
        family += [each for each, status in known.items() if status.get("PPid", "").strip() == str(parent)]
    return [each for each in family if _holds(known.get(each, {}), "SigCgt")]


async def dump_all(pid: int, announce: Callable[[int], None] = lambda _: None) -> None:
    """Make process `pid` and its descendants write their stack traces; `announce` is called before each."""
    for each in processes(pid):
        announce(each)
        await request(each)


async def request(pid: int) -> None:
    """Send `SIGNAL` to process `pid` and wait up to three seconds for it to write its stack traces.

    `pid` must be one of the IDs that `processes` returned.
    """
    with suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, SIGNAL)
        async with asyncio.timeout(_WRITE_SECONDS):
            # The signal is pending until it is delivered, and blocked until its handler has returned.
            while _holds(_status(pid), "SigPnd", "ShdPnd", "SigBlk"):  # noqa: ASYNC110 - another process can only be polled
                await asyncio.sleep(_POLL_SECONDS)


def _status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status, or an empty dictionary if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _holds(status: dict[str, str], *sets: str) -> bool:
    """Return whether any of the signal masks named in `sets` contains `SIGNAL`."""
    return any(int(status.get(name, "0"), 16) >> (SIGNAL - 1) & 1 for name in sets)
