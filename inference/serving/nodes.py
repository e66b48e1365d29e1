"""The places that answer: external servers, or pairs of slots for processes of ours.

Knows a node's name, whether it may be sent chats, and how many answers it has under way. Which of them a chat goes
to is routing.py's, what runs inside is bluegreen.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.engines.commands import Command, Kind
from inference.serving.blue_green import BlueGreen
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.serving.engine_stats import Sight
from inference.serving.supervisor import State
from inference.serving.switching import switch
from inference.settings import InferenceSettings


class Node:
    """One place that answers with one model.

    `name` must be the same after every restart of the bot: chats are placed by it. `drained` is the operator's will,
    `moving` the deployment's own, while a swap has it closed. `sight` notes what its answers cost.
    """

    def __init__(self, name: str, slots: BlueGreen) -> None:
        self.name = name
        self.slots = slots
        self.drained = False
        self.moving = False
        self.in_flight = 0
        self.sight = Sight()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def away(self) -> bool:
        """Whether it answers nobody on purpose."""
        return self.drained or self.moving or self.slots.resting

    @property
    def worker(self) -> Worker | None:
        """The engine that chats may be sent to now, or None."""
        worker = self.slots.live.worker
        return worker if worker is not None and worker.open and not self.away else None

    @property
    def state(self) -> State:
        """How its engine stands, whether it is away or not."""
        return self.slots.live.state

    @property
    def model_id(self) -> str:
        """What it answers with."""
        return self.slots.live.model_id

    @contextmanager
    def lease(self, worker: Worker) -> Iterator[None]:
        """Hold one of its workers while an answer is under way."""
        self.in_flight += 1
        self._idle.clear()
        try:
            with worker.lease():
                yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no answer is under way."""
        await self._idle.wait()


def nodes_for(
    settings: InferenceSettings,
    kind: Kind,
    model_id: str,
    model_dir: Path,
    *,
    command: Command | None,
    logs: Path,
    changed: Callable[[], None],
) -> list[Node]:
    """The nodes that the settings name: each endpoint, else each GPU, else one engine that sees what we see."""

    def node(name: str, log: str = "engine", **place: Any) -> Node:
        launch = Launch(model_id, model_dir, command, logs / f"{log}.log", settings, **place)
        return Node(name, BlueGreen(launch, changed, switch if settings.swap_command else None))

    if command is None:
        return [node(endpoint, _as_file("swap", endpoint), endpoint=endpoint) for endpoint in settings.endpoints]
    return [node(f"gpu{gpu}", f"engine-gpu{gpu}", environment=_sees_only(gpu)) for gpu in settings.gpus] or [node(kind)]


def _as_file(what: str, endpoint: str) -> str:
    return f"{what}-{re.sub('[^a-zA-Z0-9.]+', '-', endpoint.partition('://')[2])}"


def _sees_only(gpu: int) -> dict[str, str]:
    # In the bus's order, so that the number is nvidia-smi's.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)}
