"""Handover of chats between replicas, after warming up the engines that receive them.

Before a replica opens, its chats are warmed up there. When it fails or closes, they are warmed up in the
background on the engines to which they move.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from inference.messages import Prompt
from inference.serving.engine_process import Worker
from inference.serving.nodes import Node
from inference.serving.prefix_warmup import RecentChat, RecentChats, Warmer
from inference.serving.routing import Router
from inference.settings import InferenceSettings

_PASSES: Final = 2
"""The number of warm-up passes before an engine opens; the second covers chats with new answers since the first."""


class ChatHandover:
    """Controller that opens and closes replicas and warms up engines for the chats that move.

    `changed` is called after every change and must call `open_ready`.
    """

    def __init__(
        self, nodes: Sequence[Node], router: Router, settings: InferenceSettings, changed: Callable[[], None]
    ) -> None:
        self._nodes = nodes
        self._router = router
        self._changed = changed
        self.recent = RecentChats(settings)
        self.warmer = Warmer()
        self._routes_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._welcoming: set[Worker] = set()

    def start(self) -> None:
        """Start a background task that warms up chats whose engine has failed."""
        self._in_background(self._keep_warm())

    async def end(self) -> None:
        """Cancel the background tasks."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def answered(self, prompt: Prompt, worker: Worker) -> None:
        """Record that `worker` processed the chat's newest prompt.

        If the chat's next question will go to another engine, the chat is warmed up on that engine.
        """
        self.recent.answered(prompt, worker)
        found = self._router.engine_for(prompt)
        if found is not None and found[1] is not worker:
            self._routes_changed.set()

    def chats(self) -> Counter[str]:
        """Return the number of recently active chats of each replica, by the replica's name."""
        return Counter(self._router.lane(chat.key) for chat in self.recent.newest_first())

    def open_ready(self) -> None:
        """Open engines that have become ready, after a warm-up if other engines can answer in the meantime."""
        engines = [(node, each) for node in self._nodes for each in (node.slots.live, node.slots.canary)]
        for node, supervisor in engines:
            worker = supervisor.worker if supervisor is not None else None
            if worker is None or worker.open:
                continue
            canary = supervisor is node.slots.canary
            if worker in self._welcoming:
                # Answering takes precedence over warming up: if no other engine is left, this one opens immediately.
                worker.open = not self._answering() and not node.away
            elif node.away or not self._answering() or not any(self._incoming(node, canary)):
                worker.open = True
            else:
                self._welcoming.add(worker)
                self._in_background(self._welcome_back(node, worker, canary))
        self._routes_changed.set()

    async def welcome(self, node: Node, worker: Worker, *, canary: bool = False) -> None:
        """Open a worker of `node` to chats, after a warm-up if other engines can answer in the meantime.

        `canary` is True for the worker of the canary.
        """
        for _ in range(_PASSES):
            incoming = [(chat, worker) for chat in self._incoming(node, canary)]
            if not self._answering() or not await self.warmer.warm(incoming):
                break
        worker.open = True
        self._changed()

    async def leave_canary(self) -> None:
        """Warm up the canary's chats on the engines that take them over when the canary stops."""
        routes = [
            (chat, self._router.engine_for(chat.prompt), self._router.choice(chat.key))
            for chat in self.recent.newest_first()
        ]
        await self.warmer.warm(
            [(chat, live[1]) for chat, now, live in routes if now and live and now[1] is not live[1]]
        )

    @asynccontextmanager
    async def closed(self, node: Node) -> AsyncIterator[None]:
        """Keep a replica closed during the block, so that its chats go to others or wait."""
        node.moving = True
        self._changed()
        try:
            yield
        finally:
            node.moving = False
            self._changed()

    def _answering(self) -> bool:
        return any(node.worker for node in self._nodes)

    def _incoming(self, node: Node, canary: bool) -> Iterator[RecentChat]:
        """Yield the chats that would go to `node` if it were open; if `canary` is true, only the canary's chats."""
        for chat in self.recent.newest_first():
            if canary and not self._router.is_canarys(chat.prompt):
                continue
            for each in self._router.order(chat.key):
                if each is node:
                    yield chat
                if each is node or each.worker is not None:
                    break

    async def _welcome_back(self, node: Node, worker: Worker, canary: bool) -> None:
        try:
            await self.welcome(node, worker, canary=canary)
        finally:
            self._welcoming.discard(worker)

    async def _keep_warm(self) -> None:
        """Keep warming up chats whose next question goes to an engine that has not cached them."""
        while True:
            await self._routes_changed.wait()
            self._routes_changed.clear()
            routes = [(chat, self._router.engine_for(chat.prompt)) for chat in self.recent.newest_first()]
            await self.warmer.warm([(chat, found[1]) for chat, found in routes if found is not None])

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
