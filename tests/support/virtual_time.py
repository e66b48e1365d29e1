"""An event loop whose clock jumps to the next timer as soon as nothing else is left to do. For code without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at 0 and never waits."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 0.0

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self._virtual = max(self._virtual, loop._scheduled[0]._when)
        loop.call_soon(lambda: None)  # so that the selector does not wait
        super()._run_once()  # type: ignore[misc]  # asyncio's own step


def in_virtual_time(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to completion in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
