"""A Python interpreter that has imported the libraries of workers, so that workers start at once."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, ParamSpec

from inference.process import fork_client
from inference.process.child import Child

P = ParamSpec("P")

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class WarmPython:
    """The bot's handle to a `fork_server`, which is started on first use and again if it has ended.

    If it fails to start, workers start without it from then on.

    Args:
        python: The interpreter.
        modules: The modules to import.
        log: The log file.
        environment: Variables that libraries read on import. Each worker replaces them with its own environment.
        idle: The number of seconds without a worker after which the interpreter ends; 0 for never.
    """

    def __init__(
        self, python: str, modules: Sequence[str], *, log: Path, environment: Mapping[str, str], idle: float
    ) -> None:
        self._python = python
        self._modules = modules
        self._log = log
        self._environment = environment
        self._idle = idle
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: Child | None = None
        self._ready = asyncio.Event()
        self._starting = asyncio.Lock()
        self._failed = False

    @property
    def running(self) -> bool:
        """Whether the interpreter has imported the modules and forks workers."""
        return self._alive and self._ready.is_set()

    @property
    def _alive(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Start the interpreter unless it is running, and return when it has imported the modules or has ended."""
        async with self._starting:
            if self._failed or self.running:
                return
            try:
                if not self._alive:
                    await self._start_child()
                await self._wait()
            except OSError as error:
                log.warning("workers start without preloaded libraries: %s", error)
                self._failed = True
                return
            if not self.running:
                log.warning("workers start without preloaded libraries; see %s", self._log)
                self._failed = True
                await self._end()

    async def _start_child(self) -> None:
        await self._end()
        # Only this user can reach a socket in a temporary folder.
        self._folder = tempfile.TemporaryDirectory(prefix="thumbtune-")
        self._ready = ready = asyncio.Event()
        words = [self._python, "-m", "inference.process.fork_server", self._address, str(self._idle)]
        self._child = await Child.start(
            [*words, *self._modules],
            log=self._log,
            environment={**self._environment, "HF_MODULES_CACHE": f"{self._folder.name}/modules"},
            on_line=lambda line: ready.set() if line == fork_client.READY else None,
        )

    async def _wait(self) -> None:
        assert self._child is not None
        waits = [asyncio.create_task(each) for each in (self._ready.wait(), self._child.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=_START_SECONDS)
        finally:
            for each in waits:
                each.cancel()

    def forked(self, command: Sequence[str]) -> list[str]:
        """Return the command that forks `command`, which is `[python, "-m", module, ...]`, if that is possible.

        Otherwise, return `command`.
        """
        if not self.running or command[0] != self._python:
            return list(command)
        return [self._python, "-IS", fork_client.__file__, self._address, *command[1:]]

    def forking(self, command: Callable[P, list[str]]) -> Callable[P, list[str]]:
        """Return a function that calls `command` and passes its result through `forked`."""

        def called(*args: P.args, **kwargs: P.kwargs) -> list[str]:
            return self.forked(command(*args, **kwargs))

        return called

    async def stop(self) -> None:
        """End the interpreter and its workers."""
        async with self._starting:
            await self._end()

    @property
    def _address(self) -> str:
        assert self._folder is not None
        return f"{self._folder.name}/socket"

    async def _end(self) -> None:
        if self._child is not None:
            await self._child.stop(_STOP_SECONDS)
            self._child = None
        if self._folder is not None:
            await asyncio.to_thread(self._folder.cleanup)
            self._folder = None
