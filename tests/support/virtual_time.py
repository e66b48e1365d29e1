"""An event loop with virtual time: its clock jumps to the next timer as soon as nothing else is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Selector(selectors.SelectSelector):
    """Instead of waiting, moves the clock of its loop to the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "nothing is left to happen"
        if not ready and timeout:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time and without threads: their work runs on the loop, in the order it was given."""

    def __init__(self, now: float = 0.0) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = now
        super().__init__(selector)

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run `func` in a later iteration of the loop."""
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        self.call_soon(work)
        return future


def in_virtual_time(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to completion in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
