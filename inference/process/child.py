"""A child process for an engine or a training worker, with its output in a rotating log.

A child does not outlive its parent. The parent holds the only write end of a pipe that is the child's
standard input: however the parent ends, even by `kill -9`, the child reads end-of-file and exits (see
parent_watch.py, which runs in the child). A child leads its own session, so that Ctrl-C in a terminal
does not reach the child, and killing the child also kills the processes that it started.
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
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")  # progress bars end their lines with \r


class Child:
    """A child process. Create one with `start`; every child must be waited for or stopped."""

    def __init__(
        self, process: Process, lifeline: int, log: _Log, outputs: Sequence[tuple[int, Callable[[str], None] | None]]
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._log = log
        self._pumps = [asyncio.create_task(self._pump(reader, listener)) for reader, listener in outputs]
        self._end = asyncio.create_task(self._watch())

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
        """Start `command` without a shell.

        Args:
            command: The program and its arguments.
            log: The log file for standard output and standard error, with a timestamp before each line.
            log_bytes: The size in bytes at which the log file is rotated.
            log_files: The number of old log files to keep.
            cwd: The working directory.
            environment: Variables to add to the environment from `for_children`.
            on_line: A function called with each line of standard output. It must not raise an exception.

        Raises:
            OSError: The program cannot be started.
        """
        output = _Log(log, log_bytes, log_files)
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
            output.close()
            raise
        finally:
            for end in ends:
                os.close(end)
        output.line(f"--- process {process.pid}: {shlex.join(command)}")
        return cls(process, lifeline, output, list(zip(readers, (on_line, None), strict=False)))

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status as in `subprocess`: None while the child runs, negative if a signal ended it."""
        return self._process.returncode

    @property
    def log_path(self) -> Path:
        """Path of the log file."""
        return self._log.path

    def tail(self, lines: int = 15) -> str:
        """Return the last `lines` lines that the child wrote, for an error message."""
        return "\n".join(list(self._log.tail)[-lines:])

    def how_it_ended(self) -> str:
        """Return how the child ended, such as `exit code 3` or `signal SIGKILL`, or `still running`."""
        code = self.returncode
        if code is None:
            return "still running"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"

    async def dump_stacks(self) -> None:
        """Make the child and its descendants log their stack traces, if they support it (see stack_dump.py)."""
        if self.returncode is None:
            await stack_dump.dump_all(self.pid, lambda pid: self._log.line(f"--- stacks of process {pid}:"))

    async def wait(self) -> int:
        """Wait until the child ends and return its exit status.

        On return, the child has been reaped and all its output is in the log.
        """
        return await asyncio.shield(self._end)

    async def stop(self, grace: float) -> int:
        """Send SIGTERM to the child, kill it after `grace` seconds if necessary, and return its exit status.

        Cancelling the call kills the child immediately. It is safe to call `stop` more than once, even after the
        child has ended.
        """
        self.terminate()
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

    def terminate(self) -> None:
        """Send SIGTERM to the child; `wait` must still reap it."""
        if self.returncode is None:
            # Not Process.terminate(): up to Python 3.12.7 it polls, and may reap the child before asyncio's watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the child and to all processes that it started; `wait` must still reap the child."""
        if self.returncode is None:
            self._kill_group()

    def _kill_group(self) -> None:
        # The child leads its group (start_new_session), so the group's ID is the child's PID.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _watch(self) -> int:
        code = await self._process.wait()
        # The child's descendants must neither outlive it nor keep the output pipes open.
        self._kill_group()
        _, late = await asyncio.wait(self._pumps, timeout=_PUMP_SECONDS)
        for pump in late:
            pump.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        os.close(self._lifeline)
        self._log.line(f"--- process {self.pid}: {self.how_it_ended()}")
        self._log.close()
        return code

    async def _pump(self, descriptor: int, listener: Callable[[str], None] | None) -> None:
        """Read a pipe to its end and pass each line to the log and to `listener`.

        A line longer than `_LINE_BYTES` is split.
        """
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
                    self._on_line(line, listener)
            self._on_line(rest, listener)
        finally:
            transport.close()

    def _on_line(self, line: bytes, listener: Callable[[str], None] | None) -> None:
        text = line.decode("utf-8", "replace")
        if not text.strip():
            return
        self._log.line(text)
        self._log.tail.append(text)
        if listener is not None:
            listener(text)


class _Log:
    """A rotating log file with a timestamp before each line; the last lines are also kept in memory."""

    def __init__(self, path: Path, limit: int, files: int) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = RotatingFileHandler(path, maxBytes=limit, backupCount=files, encoding="utf-8", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def line(self, text: str) -> None:
        # Not through a logger: a child's output is data, not a log message to be filtered or forwarded.
        self._handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self._handler.close()
