"""The replicas of a deployment: an external server, a Ray cluster, or engine processes that the bot starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.engines.commands import Command, Kind
from inference.serving.blue_green import BlueGreen
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.serving.engine_stats import EngineStatsCollector
from inference.settings import InferenceSettings


class Node:
    """One replica of a deployment.

    Attributes:
        name: The name by which chats are routed; it must stay the same when the bot restarts.
        slots: The engines of the live model and of the canary.
        moving: Whether a swap keeps the replica closed.
        stats: The collector of the replica's statistics.
    """

    def __init__(self, name: str, slots: BlueGreen) -> None:
        self.name = name
        self.slots = slots
        self.moving = False
        self.in_flight = 0
        self.stats = EngineStatsCollector()

    @property
    def away(self) -> bool:
        """Whether the replica is closed on purpose."""
        return self.moving or self.slots.resting

    @property
    def worker(self) -> Worker | None:
        """The live model's engine if it accepts chats now, or None."""
        worker = self.slots.live.worker
        return worker if worker is not None and worker.open and not self.away else None

    @property
    def canary(self) -> Worker | None:
        """The canary's engine if it accepts chats now, or None."""
        worker = self.slots.canary.worker if self.slots.canary is not None else None
        return worker if worker is not None and worker.open and not self.away else None

    @property
    def models(self) -> set[str]:
        """IDs of the models that the replica serves, or will serve once their engines are ready."""
        return {each.model_id for each in (self.slots.live, self.slots.canary) if each is not None}

    @contextmanager
    def lease(self, worker: Worker) -> Iterator[None]:
        """Mark an answer by `worker`, one of the replica's engines, as in flight during the block."""
        self.in_flight += 1
        try:
            with worker.lease():
                yield
        finally:
            self.in_flight -= 1


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
    """Return one replica if the server is external or a Ray cluster, otherwise one per GPU.

    If no GPUs are listed in the settings, a single replica inherits this process's devices.
    """

    def node(name: str, log: str = "engine", **target: Any) -> Node:
        launch = Launch(model_id, model_dir, command, logs / f"{log}.log", settings, **target)
        return Node(name, BlueGreen(launch, changed))

    if kind is Kind.RAY:
        return [node(kind, endpoint=settings.ray.url)]
    if command is None:
        return [node(settings.endpoint, endpoint=settings.endpoint)]
    return [node(f"gpu{gpu}", f"engine-gpu{gpu}", environment=_visible_gpu(gpu)) for gpu in settings.gpus] or [
        node(kind)
    ]


def _visible_gpu(gpu: int) -> dict[str, str]:
    # With PCI bus order, CUDA numbers the GPUs as nvidia-smi does.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)}
