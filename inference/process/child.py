"""One child process: start, output into a rotating log, end. For engines and for training workers alike.

Knows pipes, signals and process groups. What the child does, when it is ready and whether to start it again are
left to worker.py and supervisor.py (engines) and to the training room.

A child never outlives us. Its standard input is a pipe whose only writing end is ours and never written to:
whatever ends this process, `kill -9` included, the child reads end-of-file there and leaves
(inference/process/parent_watch.py, in the child). A child leads its own session, so that Ctrl-C in a terminal reaches
only us and a kill reaches also what the child has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import signal
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Self

from inference.process import stack_dump
from inference.process.environment import for_children

_TAIL_LINES: Final = 40
_LINE_BYTES: Final = 64 * 1024
_PUMP_SECONDS: Final = 5.0
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")  # a progress bar ends its lines with \r


class Child:
    """A running child process. Make one with `start`; every child must be waited for or stopped."""

    def __init__(self, process: Process, lifeline: int, log: _Log) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._log = log
        self._pumps: list[asyncio.Task[None]] = []
        self._end: asyncio.Task[int] | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        log: Path,
        log_bytes: int = 5_000_000,
        log_files: int = 3,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Self:
        """Start `command` (no shell). `environment` is added to ours, which comes without its secrets.

        Standard output and error go to `log`, each line with its time; the file is rotated at `log_bytes` and
        `log_files` old ones are kept. `on_line` gets each line of the standard output too, without its end; it
        must not raise. Raises OSError when the program cannot be started.
        """
        written = _Log(log, log_bytes, log_files)
        stdin, lifeline = os.pipe()
        ends = [stdin]
        readers = []
        try:
            for _ in range(1 if on_line is None else 2):
                reader, writer = os.pipe()
                readers.append(reader)
                ends.append(writer)
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin,
                stdout=ends[1],
                stderr=ends[-1],
                cwd=cwd,
                env={**for_children(), "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
        except BaseException:
            for end in (lifeline, *readers):
                os.close(end)
            written.close()
            raise
        finally:
            for end in ends:
                os.close(end)
        written.line(f"--- process {process.pid}: {shlex.join(command)}")
        child = cls(process, lifeline, written)
        for reader, hear in zip(readers, (on_line, None), strict=False):
            child._pumps.append(asyncio.create_task(child._pump(reader, hear)))
        child._end = asyncio.create_task(child._watch())
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while the child runs; negative for a signal, as in `subprocess`."""
        return self._process.returncode

    @property
    def log_path(self) -> Path:
        return self._log.path

    def tail(self, lines: int = 15) -> str:
        """The last lines that the child wrote, for an error that somebody has to understand."""
        return "\n".join(list(self._log.tail)[-lines:])

    def how_it_ended(self) -> str:
        """Say it in words: `exit code 3`, `signal SIGKILL`, `still running`."""
        code = self.returncode
        if code is None:
            return "still running"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"

    async def show_stacks(self) -> None:
        """Have the child, and what it started, write into the log where they stand, as far as they do (stacks.py)."""
        if self.returncode is None:
            for pid in stack_dump.answering(self.pid):
                self._log.line(f"--- process {pid} stands here:")
                await stack_dump.ask(pid)

    async def wait(self) -> int:
        """Wait for the end and return the exit status. The child is reaped then and its output is in the log."""
        assert self._end is not None
        return await asyncio.shield(self._end)

    async def stop(self, grace: float) -> int:
        """Ask the child to end (SIGTERM), kill it after `grace` seconds; return its exit status when it is reaped.

        Cancelling this kills at once. Safe to call again, also on a child that has ended.
        """
        if self.returncode is None:
            # Not Process.terminate(): up to Python 3.12.7 it polls, and may reap behind the child watcher's back.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self.kill()
            raise
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the child and to all it started, also when it is stopped or hangs. `wait` still has to reap it."""
        if self.returncode is None:
            self._kill_group()

    def _kill_group(self) -> None:
        # The child leads its group (start_new_session), so the group's number is its pid.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _watch(self) -> int:
        code = await self._process.wait()
        # What it started must not outlive it, nor hold the output pipes open.
        self._kill_group()
        _, late = await asyncio.wait(self._pumps, timeout=_PUMP_SECONDS)
        for pump in late:
            pump.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self._log.line(f"--- process {self.pid}: {self.how_it_ended()}")
        self._log.close()
        return code

    async def _pump(self, descriptor: int, hear: Callable[[str], None] | None) -> None:
        """Read one pipe to its end, line by line; a line beyond `_LINE_BYTES` is cut in pieces."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        try:
            rest = b""
            while block := await reader.read(_LINE_BYTES):
                *lines, rest = _END_OF_LINE.split(rest + block)
                if len(rest) > _LINE_BYTES:
                    lines.append(rest)
                    rest = b""
                for line in lines:
                    self._heard(line, hear)
            self._heard(rest, hear)
        finally:
            transport.close()

    def _heard(self, line: bytes, hear: Callable[[str], None] | None) -> None:
        text = line.decode("utf-8", "replace")
        if not text.strip():
            return
        self._log.line(text)
        self._log.tail.append(text)
        if hear is not None:
            hear(text)


class _Log:
    """A rotating file with a time before each line, and the last lines in memory."""

    def __init__(self, path: Path, limit: int, files: int) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = RotatingFileHandler(path, maxBytes=limit, backupCount=files, encoding="utf-8", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def line(self, text: str) -> None:
        # Straight into the handler: a child's output is data, not a message of ours to be filtered or forwarded.
        self._handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self._handler.close()
