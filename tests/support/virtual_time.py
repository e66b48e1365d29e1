"""An event loop with virtual time: its clock jumps to the next timer as soon as nothing else is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Selector(selectors.PollSelector):  # select() has a limit of 1,024 open files
    """A selector that advances its loop's virtual clock to the next timer instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "nothing is left to do"
        if not ready and timeout:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time and without threads.

    Work submitted to an executor runs on the loop, in the order of submission.
    """

    def __init__(self, now: float = 0.0) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = now
        super().__init__(selector)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Schedule `func` for a later iteration of the loop, and return a future for its result."""
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - the error is for the caller
                future.set_exception(error)

        self.call_soon(work)
        return future


def in_virtual_time(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to completion in virtual time, and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
