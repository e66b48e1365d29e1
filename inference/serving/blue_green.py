"""The live model of one replica, a canary alongside it, and the swap to the next live model.

Operations on the engines are mutually exclusive (see `engine_transitions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from inference.messages import EngineUnavailable
from inference.serving.engine_launch import Launch
from inference.serving.engine_transitions import EngineTransitions, Welcome
from inference.serving.supervisor import State, Supervisor

_log = structlog.get_logger(__name__)

_SLOTS: Final = ("blue", "green")


class BlueGreen:
    """The live model's engine and, during a swap or a trial, the next model's engine.

    Args:
        launch: The parameters for starting the first engine. Each of the two slots has its own log file next
            to `launch.log`.
        changed: A function called after every change.

    Attributes:
        canary: The engine of the model on trial alongside the live one, or None.
        resting: Whether the engines are stopped, from a call to `rest` until a call to `wake`.
        cold: Whether the old engine is stopped before the new one starts.
    """

    def __init__(self, launch: Launch, changed: Callable[[], None]) -> None:
        self.resting = False
        self.crashes = 0
        """Number of engines that ended unexpectedly."""
        self.cold = launch.settings.swap == "cold"
        self._settings = launch.settings
        self._launch = launch
        self._changed = changed
        self._slot = 0
        self.live = self._supervisor(launch.model_id, launch.model_dir, self._slot)
        self.canary: Supervisor | None = None
        self._canary_due = False
        self._started = False
        self._transitions = EngineTransitions()

    @property
    def pids(self) -> tuple[int, ...]:
        """IDs of all child processes, including starting and draining ones."""
        supervisors = (self.live, self.canary, *self._transitions.engines)
        return tuple(sorted({each.pid for each in supervisors if each is not None and each.pid is not None}))

    @property
    def swapping_to(self) -> str | None:
        """ID of the model whose engine is starting and is not live yet, or None."""
        starting = self._transitions.starting
        return starting.model_id if starting is not None and starting is not self.live else None

    def run(self) -> None:
        """Start the live model's engine in the background, and retry until it starts."""
        self._started = True
        self.live.run()

    async def start(self) -> None:
        """Start the live model's engine and wait until it is ready.

        Raises:
            EngineUnavailable: The engine did not start. No process is left running.
        """
        self._started = True
        async with self._transitions.exclusive():
            await self._transitions.start(self.live)

    def serves(self, model_id: str, model_dir: Path) -> bool:
        """Return whether the model is live and either ready or resting."""
        live = self.live
        same = (model_id, model_dir) == (live.model_id, live.launch.model_dir)
        return same and (live.worker is not None or self.resting)

    def _canary_of(self, model_id: str, model_dir: Path) -> Supervisor | None:
        """Return the canary if it has the given model, or None.

        The directory may have been renamed since the canary's engine started; later starts use the new name.
        """
        if self.canary is None or self.canary.model_id != model_id:
            return None
        self.canary.launch = replace(self.canary.launch, model_dir=model_dir)
        return self.canary

    async def start_canary(self, model_id: str, model_dir: Path, welcome: Welcome) -> None:
        """Start the engine of a canary, unless it is already running, and call `welcome` to open it to chats.

        Raises:
            EngineUnavailable: The canary could not be started. The live model is unaffected.
        """
        async with self._transitions.exclusive():
            if self._transitions.ended or not self._started:
                raise EngineUnavailable("The model cannot be tried: the engine is not running.")
            if canary := self._canary_of(model_id, model_dir):
                if canary.worker is not None:
                    await welcome(canary.worker)
                return
            await self._end_canary(0)
            canary = self._supervisor(model_id, model_dir, 1 - self._slot)
            await self._transitions.start(canary, welcome)
            self.canary = canary
            self._changed()

    def run_canary(self, model_id: str, model_dir: Path) -> None:
        """Start a canary in the background once the live model answers, and retry until the canary has started."""
        if self._canary_of(model_id, model_dir) is None:
            self.canary = self._supervisor(model_id, model_dir, 1 - self._slot)
            self._canary_due = True
            self._on_change()

    async def stop_canary(self) -> None:
        """Stop the canary, giving its answers in progress up to `drain_timeout` seconds to finish.

        Unfinished answers are restarted on the live model.
        """
        async with self._transitions.exclusive():
            await self._end_canary(self._settings.drain_timeout)

    async def swap(self, model_id: str, model_dir: Path, welcome: Welcome) -> bool:
        """Make a model live and return True, or return False if the model is already live.

        `welcome` is called to open the new engine to chats. A canary that already serves the model takes over;
        any other canary is stopped. The call returns when the old process has ended.

        Raises:
            EngineUnavailable: The new engine did not start. The live model is unaffected or, if its engine was
                stopped first (`cold`), is restarted.
        """
        async with self._transitions.exclusive():
            if self._transitions.ended or not self._started:
                raise EngineUnavailable("The model cannot be swapped: the engine is not running.")
            if self.serves(model_id, model_dir):
                return False
            canary = self._canary_of(model_id, model_dir)
            if canary is not None and canary.worker is not None:
                await welcome(canary.worker)
                self.canary = None
                await self._make_live(canary)
                return True
            await self._end_canary(0)
            green = self._supervisor(model_id, model_dir, 1 - self._slot)
            await (self._replace(green, welcome) if self.cold else self._transitions.start(green, welcome))
            await self._make_live(green)
            return True

    async def _end_canary(self, drain: float) -> None:
        canary, self.canary, self._canary_due = self.canary, None, False
        if canary is not None:
            self._changed()
            await self._transitions.retire(canary, drain)

    async def _replace(self, green: Supervisor, welcome: Welcome) -> None:
        """Stop the live engine, then start `green`; if `green` does not start, restart the old engine.

        Raises EngineUnavailable if `green` does not start.
        """
        blue = self.live
        await self._transitions.retire(blue, self._settings.drain_timeout)
        try:
            await self._transitions.start(green, welcome)
        except EngineUnavailable as error:
            if self._transitions.ended:
                raise
            again = await self._restore(blue, welcome)
            raise EngineUnavailable(f"{error}\n{blue.model_id} {again}") from error

    async def _restore(self, blue: Supervisor, welcome: Welcome) -> str:
        """Restart the old model after a failed swap; return a description of the outcome for the error message.

        If the restart fails, further attempts follow in the background.
        """
        try:
            await self._transitions.start(blue, welcome)
        except EngineUnavailable as error:
            if not self._transitions.ended:
                blue.run()
            return f"did not restart either, and further attempts follow: {error}"
        return "answers again."

    async def _make_live(self, green: Supervisor) -> None:
        """Route chats to `green` and stop the former live engine.

        The former engine gets up to `drain_timeout` seconds to finish its answers.
        """
        blue = self.live
        self.live, self._slot = green, 1 - self._slot
        self._changed()
        _log.info("model swapped", old=blue.model_id, new=green.model_id, pid=green.pid)
        await self._transitions.retire(blue, self._settings.drain_timeout)

    async def rest(self) -> None:
        """Stop the engines until `wake` is called.

        Answers in flight are interrupted, and their questions may wait for `wake`.
        """
        async with self._transitions.exclusive():
            self.resting = True
            self._canary_due = self.canary is not None
            await self._retire_all()

    async def wake(self) -> None:
        """Start the engine in the background if it is not running."""
        async with self._transitions.exclusive():
            self.resting = False
            if self._started and not self._transitions.ended and self.live.state is State.STOPPED:
                self.live.run()
            self._changed()

    def refuse(self) -> None:
        """Cancel a start in progress and prevent further starts; this is the first step of `end`."""
        self._transitions.refuse()

    async def end(self) -> None:
        """Stop every process. It is safe to call `end` more than once and during any other operation."""
        self.refuse()
        self._transitions.cut()
        async with self._transitions.exclusive():
            self._canary_due = False
            await self._retire_all()

    async def _retire_all(self) -> None:
        await asyncio.gather(
            *(self._transitions.retire(each, 0) for each in (self.live, self.canary) if each is not None)
        )

    def _supervisor(self, model_id: str, model_dir: Path, slot: int) -> Supervisor:
        log = self._launch.log.with_stem(f"{self._launch.log.stem}-{_SLOTS[slot]}")
        return Supervisor(
            replace(self._launch, model_id=model_id, model_dir=model_dir, log=log), self._on_change, self._crashed
        )

    def _on_change(self) -> None:
        """React to a change in an engine; start a pending canary once the live model answers."""
        # The canary starts later, because two engines that start together would both claim the same free memory.
        if self._canary_due and self.canary and self.live.worker and not self._transitions.ended:
            self._canary_due = False
            self.canary.run()
        self._changed()

    def _crashed(self) -> None:
        self.crashes += 1
