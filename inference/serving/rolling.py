"""Swaps and canaries on all replicas, one replica after the other, undone if a replica fails."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from inference.messages import EngineUnavailable
from inference.serving.chat_handover import ChatHandover
from inference.serving.engine_launch import Launch
from inference.serving.nodes import Node
from inference.serving.supervisor import State

_log = structlog.get_logger(__name__)


class Rolling:
    """Coordinator that swaps the model of `nodes`, one replica at a time."""

    def __init__(self, nodes: Sequence[Node], handover: ChatHandover) -> None:
        self._nodes = nodes
        self._handover = handover
        self._lock = asyncio.Lock()
        self._unfinished: set[asyncio.Task[bool]] = set()

    async def swap(self, model_id: str, model_dir: Path) -> bool:
        """Switch every replica to the given model; return False if all of them already had it.

        A cancellation leaves the remaining replicas as they are.

        Raises:
            EngineUnavailable: A replica failed. The swap has been rolled back as far as possible, and the
                message lists which replica has which model.
        """
        async with self._exclusive():
            if not await asyncio.to_thread(model_dir.is_dir):
                raise EngineUnavailable(f"{model_id} cannot go live: there is no directory {model_dir}.")
            swapped: list[tuple[Node, Launch]] = []
            for node in self._nodes:
                before = node.slots.live.launch
                try:
                    if await self._swap(node, model_id, model_dir):
                        swapped.append((node, before))
                except EngineUnavailable as error:
                    if len(self._nodes) == 1:
                        raise
                    await self._roll_back(swapped)
                    raise EngineUnavailable(self._describe_failure(node, model_id, error)) from error
            return bool(swapped)

    async def start_canary(self, model_id: str, model_dir: Path) -> None:
        """Start a canary on every replica.

        Raises:
            EngineUnavailable: A replica failed. The canary has been stopped on all replicas.
        """
        async with self._exclusive():
            try:
                for node in self._nodes:
                    await node.slots.start_canary(
                        model_id, model_dir, partial(self._handover.welcome, node, canary=True)
                    )
            except BaseException:
                await asyncio.gather(*(node.slots.stop_canary() for node in self._nodes))
                raise

    async def stop_canary(self) -> None:
        """Stop the canary on every replica, after warming up its chats on the live model's engines."""
        async with self._exclusive():
            await self._handover.leave_canary()
            await asyncio.gather(*(node.slots.stop_canary() for node in self._nodes))

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Hold a lock that allows only one swap or change of the canary at a time."""
        async with self._lock:
            if self._unfinished:
                await asyncio.wait(self._unfinished)
            yield

    async def _swap(self, node: Node, model_id: str, model_dir: Path) -> bool:
        slots = node.slots
        if slots.serves(model_id, model_dir):
            return False
        if not slots.cold:
            return await slots.swap(model_id, model_dir, partial(self._handover.welcome, node))
        # The swap is completed even if the caller is cancelled, because the old engine stops before the new one starts.
        task = asyncio.create_task(self._swap_closed(node, model_id, model_dir))
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _swap_closed(self, node: Node, model_id: str, model_dir: Path) -> bool:
        """Swap the model while the replica is closed; meanwhile, its chats go to other replicas or wait."""
        async with self._handover.closed(node):
            return await node.slots.swap(model_id, model_dir, partial(self._handover.welcome, node))

    async def _roll_back(self, swapped: Sequence[tuple[Node, Launch]]) -> None:
        for node, before in reversed(swapped):
            try:
                await self._swap(node, before.model_id, before.model_dir)
            except EngineUnavailable as error:
                _log.error("node keeps the new model", node=node.name, model=node.slots.live.model_id, error=str(error))

    def _describe_failure(self, failed: Node, model_id: str, error: EngineUnavailable) -> str:
        """Describe for the operator what failed, which replica has which model now, and what to do."""
        models: dict[str, list[str]] = defaultdict(list)
        for node in self._nodes:
            silent = "" if node.slots.live.state is State.READY else " (does not answer)"
            models[node.slots.live.model_id].append(f"{node.name}{silent}")
        now = "; ".join(f"{model} at {', '.join(names)}" for model, names in models.items())
        return (
            f"{failed.name} could not be switched to {model_id}, so the change was undone: {error}\n"
            f"The models are now {now}. Fix {failed.name}, then /promote {model_id} again."
        )
