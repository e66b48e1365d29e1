"""How chats move between nodes without noticing: to others before a node goes, back after it has returned.

Knows the order of things: warm first, then send. A node that comes back is warmed before its chats do; the chats of
one that died are warmed in the background where they go. Where a chat goes is routing.py's, how a prompt is warmed
warming.py's, how all nodes change their model rolling.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import structlog

from inference.messages import EngineUnavailable, LastNode, Prompt
from inference.serving.engine_process import Worker
from inference.serving.nodes import Node
from inference.serving.prefix_warmup import Chat, RecentChats, Warmer
from inference.serving.routing import Router
from inference.settings import InferenceSettings

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

_PASSES: Final = 2
"""Before an engine is opened its chats are warmed again: some were answered elsewhere in the meantime."""


class Moves:
    """Opens and closes nodes. `changed` is called after every change; `look` expects to be called then."""

    def __init__(
        self, nodes: Sequence[Node], router: Router, settings: InferenceSettings, changed: Callable[[], None]
    ) -> None:
        self._nodes = nodes
        self._router = router
        self._settings = settings
        self._changed = changed
        self._recent = RecentChats(settings)
        self._warmer = Warmer(settings)
        self._alone = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._welcoming: set[Worker] = set()

    @property
    def warmed(self) -> int:
        """Prompts computed ahead so far."""
        return self._warmer.warmed

    def start(self) -> None:
        """Begin to look after chats whose engine has gone."""
        self._in_background(self._attend())

    async def end(self) -> None:
        """Stop all that goes on in the background."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def answered(self, prompt: Prompt, worker: Worker) -> None:
        """Note who has computed the chat's newest prompt; if the chat goes elsewhere next, warm it there."""
        self._recent.answered(prompt, worker)
        found = self._router.choice(prompt.chat)
        if found is not None and found[1] is not worker:
            self._stirred.set()

    def forget(self, chat: str) -> None:
        """Do not warm this chat any more."""
        self._recent.forget(chat)

    def chats(self) -> dict[str, int]:
        """How many recently active chats each node answers, by the node's name."""
        numbers = dict.fromkeys((node.name for node in self._nodes), 0)
        for chat in self._recent.newest_first():
            numbers[self._router.lane(chat.key)] += 1
        return numbers

    def look(self) -> None:
        """See which engines have come up and open them, warmed before if others answer meanwhile."""
        for node in self._nodes:
            worker = node.slots.live.worker
            if worker is None or worker.open:
                continue
            if worker in self._welcoming:
                # People before caches: whoever is being warmed is opened when nobody else is left.
                worker.open = not self._answering() and not node.away
            elif node.away or not self._answering() or not any(self._coming(node)):
                worker.open = True
            else:
                self._welcoming.add(worker)
                self._in_background(self._welcome_back(node, worker))
        self._stirred.set()

    async def welcome(self, node: Node, worker: Worker) -> None:
        """Open a worker of the node; while anybody else answers, warm it before."""
        for _ in range(_PASSES):
            if not self._answering() or not await self._warmer.warm([(chat, worker) for chat in self._coming(node)]):
                break
        worker.open = True
        self._changed()

    async def leave(self, node: Node) -> None:
        """Warm the node's chats where they go when it is closed."""
        plan = []
        for chat in self._recent.newest_first():
            found = self._router.choice(chat.key)
            if found is not None and found[0] is node:
                elsewhere = self._router.choice(chat.key, avoid=found[1])
                assert elsewhere is not None
                plan.append((chat, elsewhere[1]))
        await self._warmer.warm(plan)

    async def drain(self, name: str) -> None:
        """Close a node by hand: its chats are warmed elsewhere and move; returns when it has finished its answers.

        What is not finished after `drain_timeout` seconds is begun anew elsewhere. One that does not answer is closed
        at once, even while a swap waits for it. A cancelled drain may leave the node closed. Raises EngineUnavailable
        for a name that is none, and where nobody would answer then.
        """
        node = self.named(name)
        if node.slots.live.worker is None:
            self._close(node)
            return
        async with self.alone():
            await self.leave(node)
            self._close(node)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout):
                    await node.idle()
                    return
            worker = node.slots.live.worker
            if worker is not None and self._answering():
                worker.give_up("its node was drained", wished=True)

    async def undrain(self, node: Node) -> None:
        """Open a drained node: its chats are warmed there and come back. Call it `alone`."""
        worker = node.slots.live.worker
        if worker is not None:
            worker.open = False
            await self.welcome(node, worker)
        node.drained = False
        self._changed()
        _log.info("node back", node=node.name)

    @asynccontextmanager
    async def closed(self, node: Node) -> AsyncIterator[None]:
        """Close a node for a while, its chats warmed elsewhere before. Call it `alone`."""
        await self.leave(node)
        node.moving = True
        self._changed()
        try:
            yield
        finally:
            node.moving = False
            self._changed()

    def named(self, name: str) -> Node:
        """The node of that name. Raises EngineUnavailable naming those there are."""
        for node in self._nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self._nodes)
        raise EngineUnavailable(f"There is no node {name!r}; there are: {names}.")

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """One drain, undrain or swap at a time, each to its end."""
        async with self._alone:
            if self._unfinished:
                await asyncio.wait(self._unfinished)
            yield

    async def to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for what must not be left half done: whoever waits may be cancelled, the work goes on."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    def _close(self, node: Node) -> None:
        others = [other for other in self._nodes if other is not node and not other.drained]
        if not others or (node.worker is not None and not any(other.worker for other in others)):
            raise LastNode(node.name)
        node.drained = True
        self._changed()
        _log.info("node drained", node=node.name)

    def _answering(self) -> bool:
        return any(node.worker for node in self._nodes)

    def _coming(self, node: Node) -> Iterator[Chat]:
        """The chats that would be answered by the node if it were open."""
        for chat in self._recent.newest_first():
            for each in self._router.order(chat.key):
                if each is node:
                    yield chat
                if each is node or each.worker is not None:
                    break

    async def _welcome_back(self, node: Node, worker: Worker) -> None:
        try:
            await self.welcome(node, worker)
        finally:
            self._welcoming.discard(worker)

    async def _attend(self) -> None:
        """Warm the chats whose next question goes to an engine that does not know them; one after the other."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            places = [(chat, self._router.choice(chat.key)) for chat in self._recent.newest_first()]
            await self._warmer.warm([(chat, found[1]) for chat, found in places if found is not None])

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
