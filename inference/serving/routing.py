"""Which node a chat is answered by: the same one as long as it can, so that its prefix is in the engine's cache.

Rendezvous hashing (Thaler and Ravishankar, 1996): each chat has an order of preference over the nodes that follows
from the names alone. It goes to the first open one; when that fails or is drained, only its chats move, each to its
own second choice, and they move back afterwards. Nothing has to be remembered, so a restart of the bot keeps every
chat in its place. Knows who is open; opening, draining and swapping are moves.py's.
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
    """The nodes' indices in the chat's order of preference. The same in every process and for every order of names."""
    weights = [sha256(f"{name}\n{chat}".encode()).digest() for name in names]
    return tuple(sorted(range(len(names)), key=weights.__getitem__, reverse=True))


class Router:
    """The chats' places over `nodes`. `wait_timeout` seconds a chat waits while no node is open."""

    def __init__(self, nodes: Sequence[Node], wait_timeout: float) -> None:
        self._nodes = nodes
        self._names = tuple(node.name for node in nodes)
        self._wait_timeout = wait_timeout
        self._change = asyncio.Event()
        self._closed = "The engine has not been started yet."

    def open(self) -> None:
        """Let chats in from now on."""
        self._closed = ""

    def close(self) -> None:
        """Turn everybody away who asks for a place or waits for one."""
        self._closed = STOPPED
        self.changed()

    def changed(self) -> None:
        """Wake whoever waits; each looks for itself whether the change concerns it."""
        self._change.set()
        self._change = asyncio.Event()

    def order(self, chat: str) -> list[Node]:
        """The nodes in the chat's order of preference."""
        return [self._nodes[index] for index in ranked(chat, self._names)]

    def choice(self, chat: str, *, avoid: Worker | None = None) -> tuple[Node, Worker] | None:
        """The node that answers the chat now, and its worker; `avoid` is taken where there is no other."""
        opened = [(node, worker) for node in self.order(chat) if (worker := node.worker) is not None]
        return next((each for each in opened if each[1] is not avoid), opened[0] if opened else None)

    def lane(self, chat: str) -> str:
        """The name of the node that the chat goes to, or would go to if it were open."""
        found = self.choice(chat)
        return (found[0] if found else self.order(chat)[0]).name

    @property
    def away(self) -> bool:
        """Whether nobody is answered, and on purpose: somebody brings a node back."""
        return not any(node.worker for node in self._nodes) and any(node.away for node in self._expected())

    async def until_open(self, chat: str) -> AsyncGenerator[None, None]:
        """Wait until `choice` finds a node; yields each time that nobody is answered on purpose (`away`).

        Raises EngineUnavailable when waiting does not help, or lasts longer than `wait_timeout`.
        """
        deadline: float | None = None
        told = False
        while True:
            change = self._change
            if self._closed:
                raise EngineUnavailable(self._closed)
            if self.choice(chat) is not None:
                return
            if self.away:
                deadline = None
                if not told:
                    told = True
                    yield
                    continue
            else:
                told = False
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
        """Who is to answer: the nodes that are not drained by hand. There is one at least."""
        return [node for node in self._nodes if not node.drained]
