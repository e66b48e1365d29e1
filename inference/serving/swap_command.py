"""Switching an external server to another model with the operator's `inference.swap_command`.

The server's list of models shows whether it still serves the old model. Processes started by the command
belong to the operator and are left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
from asyncio.subprocess import DEVNULL, STDOUT
from contextlib import aclosing
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from inference.messages import EngineUnavailable
from inference.process.environment import for_children
from inference.process.log_rotation import rotate
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker

_TAIL_LINES: Final = 15
_POLL_SECONDS: Final = 0.5


async def switch(new: Launch, old: Launch) -> None:
    """Run `swap_command` to replace `old` with `new` at the same endpoint, and wait until the server is back.

    Cancellation kills the command.

    Raises:
        EngineUnavailable: The command fails or takes longer than `swap_command_timeout` seconds (in both
            cases, the message includes the last lines of the command's output), or the server is unreachable
            or still lists only the old model after another `start_timeout` seconds.
    """
    await _run(new)
    await _until_listed(new, old)


def command_line(launch: Launch) -> list[str]:
    """Return `swap_command` with its placeholders filled in."""
    parts = urlsplit(launch.endpoint)
    values = {
        "endpoint": launch.endpoint,
        "host": parts.hostname or "",
        "port": str(parts.port or (443 if parts.scheme == "https" else 80)),
        "model": launch.model_id,
        "model_dir": str(launch.model_dir),
    }
    return [re.sub(r"\{(\w+)\}", lambda found: values[found[1]], part) for part in launch.settings.swap_command]


async def _run(launch: Launch) -> None:
    line = command_line(launch)
    label = f"inference.swap_command for {launch.endpoint} ({shlex.join(line)})"
    timeout = launch.settings.swap_command_timeout
    # Not a pipe: a server that the command starts would keep it open, and waiting for its end would never return.
    try:
        with _opened(launch) as output:
            process = await asyncio.create_subprocess_exec(
                *line, stdin=DEVNULL, stdout=output, stderr=STDOUT, env=for_children(), start_new_session=True
            )
    except OSError as error:
        raise EngineUnavailable(f"{label} could not be started: {error}") from error
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
    except TimeoutError:
        raise EngineUnavailable(f"{label} did not end within {timeout:g} s. {_tail(launch.log)}") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code:
        raise EngineUnavailable(f"{label} ended with exit code {code}. {_tail(launch.log)}")


def _opened(launch: Launch) -> IO[bytes]:
    """Open an empty log, after rotating away the output of the previous command and its server."""
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    rotate(launch.log, above=0)
    # A server that the command started keeps writing to this log; `engine_process` rotates the log when it has grown.
    return launch.log.open("ab")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    except OSError as error:
        return f"Its output cannot be read: {error}."
    return "Its last lines:\n" + "\n".join(lines) if lines else "It wrote nothing."


async def _until_listed(new: Launch, old: Launch) -> None:
    """Wait until the server lists the new model or no longer lists the old one.

    Unknown names are accepted, because a readiness check follows.
    """
    settings = new.settings
    problem = "does not answer"
    try:
        async with asyncio.timeout(settings.start_timeout), aclosing(Worker(new).client) as client:
            while True:
                names = await client.listed()
                if names is not None:
                    if names & _names(new) or not names & _names(old):
                        return
                    problem = f"still lists {', '.join(sorted(names))}"
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise EngineUnavailable(
            f"The server at {new.endpoint} {problem} {settings.start_timeout:g} s after inference.swap_command."
        ) from None


def _names(launch: Launch) -> set[str]:
    """Return the names under which a server may list a model: its ID, and the path and name of its directory."""
    return {launch.model_id, str(launch.model_dir), launch.model_dir.name}
