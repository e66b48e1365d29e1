"""Route each chat to the same replica, so that its prefix is in that engine's cache.

Rendezvous hashing (Thaler and Ravishankar, 1996): each chat has an order of preference over the replicas that follows
from their names alone, and goes to the first open one. When a replica fails or is drained, only its chats move, each
to its own second choice, and return afterwards. Nothing is stored, so the routes survive a restart of the bot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import lru_cache
from hashlib import sha256

from inference.messages import EngineUnavailable
from inference.serving.engine_process import Worker
from inference.serving.nodes import Node
from inference.serving.supervisor import State

STOPPED = "The bot is shutting down: ask again when it is back."


@lru_cache(4096)
def ranked(chat: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return indices into `names` in the chat's order of preference, the same in every process."""
    weights = [sha256(f"{name}\n{chat}".encode()).digest() for name in names]
    return tuple(sorted(range(len(names)), key=weights.__getitem__, reverse=True))


class Router:
    """Routes chats to `nodes`. A chat waits at most `wait_timeout` seconds while none is open."""

    def __init__(self, nodes: Sequence[Node], wait_timeout: float) -> None:
        self._nodes = nodes
        self._names = tuple(node.name for node in nodes)
        self._wait_timeout = wait_timeout
        self._change = asyncio.Event()
        self._closed = "The engine has not been started yet."

    def open(self) -> None:
        """Admit chats."""
        self._closed = ""

    def close(self) -> None:
        """Reject waiting and future chats."""
        self._closed = STOPPED
        self.changed()

    def changed(self) -> None:
        """Wake the waiting chats, each of which checks the new state."""
        self._change.set()
        self._change = asyncio.Event()

    def order(self, chat: str) -> list[Node]:
        """Return the replicas in the chat's order of preference."""
        return [self._nodes[index] for index in ranked(chat, self._names)]

    def choice(self, chat: str, *, avoid: Worker | None = None) -> tuple[Node, Worker] | None:
        """Return the replica and worker that answer the chat now; `avoid` only if there is no other."""
        opened = [(node, worker) for node in self.order(chat) if (worker := node.worker) is not None]
        return next((each for each in opened if each[1] is not avoid), opened[0] if opened else None)

    def lane(self, chat: str) -> str:
        """Return the name of the replica that the chat goes to, or would if it were open."""
        found = self.choice(chat)
        return (found[0] if found else self.order(chat)[0]).name

    @property
    def away(self) -> bool:
        """Whether no replica answers, at least one of them on purpose, so that it will return."""
        return not any(node.worker for node in self._nodes) and any(node.away for node in self._expected())

    async def until_open(self, chat: str) -> AsyncGenerator[None, None]:
        """Wait until `choice` finds a replica; yield whenever none answers on purpose (`away`).

        Raises EngineUnavailable if all replicas are failing, or after `wait_timeout` seconds.
        """
        deadline: float | None = None
        reported = False
        while True:
            change = self._change
            if self._closed:
                raise EngineUnavailable(self._closed)
            if self.choice(chat) is not None:
                return
            if self.away:
                deadline = None
                if not reported:
                    reported = True
                    yield
                    continue
            else:
                reported = False
                expected = self._expected()
                if all(node.state is State.FAILING for node in expected):
                    raise EngineUnavailable(expected[0].slots.live.sentence())
                deadline = deadline or asyncio.get_running_loop().time() + self._wait_timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await change.wait()
            except TimeoutError:
                raise EngineUnavailable(self._expected()[0].slots.live.sentence()) from None

    def _expected(self) -> list[Node]:
        """Return the replicas that are not drained by the operator; at least one."""
        return [node for node in self._nodes if not node.drained]
