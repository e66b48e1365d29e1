"""Routing of each chat to the same replica every time, so that its engine has the chat's prefix cached.

Rendezvous hashing (Thaler and Ravishankar, 1996) gives each chat its own order of preference among the
replicas, computed only from the chat's key and the replicas' names; the chat goes to the first open
replica. When a replica fails, only its chats move, each to its own second choice, and they return
afterwards. Nothing is stored, so the routes survive a restart of the bot.

While a canary runs, it answers a share of the conversations. Here, a conversation is a chat about one
picture (or one media group). A new picture changes the beginning of the prompt, so neither model has an
advantage from its cache. A hash of the conversation and the canary's name decides which model answers,
so all questions about a picture go to the same model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from inference.messages import EngineUnavailable, Prompt
from inference.serving.engine_process import Worker
from inference.serving.nodes import Node
from inference.serving.supervisor import State

STOPPED = "The bot is shutting down: ask again when it is back."


@lru_cache(4096)
def ranked(chat: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return indices into `names` in the chat's order of preference, which is the same in every process."""
    weights = [sha256(f"{name}\n{chat}".encode()).digest() for name in names]
    return tuple(sorted(range(len(names)), key=weights.__getitem__, reverse=True))


@dataclass(frozen=True, slots=True)
class CanaryRoute:
    """The share of conversations, 0 to 1, that the canary `model` answers."""

    model: str
    share: float

    def takes(self, prompt: Prompt) -> bool:
        """Return whether the conversation of `prompt` goes to the canary; the result is the same in every process."""
        shown = next((turn.pictures for turn in reversed(prompt.turns) if turn.pictures), ())
        conversation = "\n".join((self.model, prompt.chat, *(picture.sha256 for picture in shown)))
        place = int.from_bytes(sha256(conversation.encode()).digest()[:8], "big")
        return place < self.share * 2**64


class Router:
    """Router that sends chats to `nodes`; if no replica is open, a chat waits for up to `wait_timeout` seconds.

    `canary` is the route of the canary, or None if there is none.
    """

    def __init__(self, nodes: Sequence[Node], wait_timeout: float) -> None:
        self._nodes = nodes
        self._names = tuple(node.name for node in nodes)
        self._wait_timeout = wait_timeout
        self.canary: CanaryRoute | None = None
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
        """Wake the waiting chats so that each checks the new state."""
        self._change.set()
        self._change = asyncio.Event()

    def order(self, chat: str) -> list[Node]:
        """Return the replicas in the chat's order of preference."""
        return [self._nodes[index] for index in ranked(chat, self._names)]

    def choice(self, chat: str, *, avoid: Worker | None = None) -> tuple[Node, Worker] | None:
        """Return the replica and live worker that answer the chat now, or None if no replica is open.

        The worker `avoid` is chosen only if there is no other.
        """
        return _first([(node, node.worker) for node in self.order(chat)], avoid)

    def engine_for(self, prompt: Prompt, *, avoid: Worker | None = None) -> tuple[Node, Worker] | None:
        """Return the replica and worker that should answer the prompt now, or None if no engine can.

        The worker `avoid` is chosen only if there is no other. If no engine of the canary accepts chats, a live
        engine answers the canary's conversations.
        """
        nodes = self.order(prompt.chat)
        if prompt.model:
            both = [(node, worker) for node in nodes for worker in (node.worker, node.canary)]
            return _first([(node, each) for node, each in both if each and each.model_id == prompt.model], avoid)
        canaries = [(node, node.canary) for node in nodes] if self.is_canarys(prompt) else []
        return _first([*canaries, *((node, node.worker) for node in nodes)], avoid)

    def is_canarys(self, prompt: Prompt) -> bool:
        """Return whether there is a canary and the conversation of `prompt` goes to it."""
        return self.canary is not None and self.canary.takes(prompt)

    def lane(self, chat: str) -> str:
        """Return the name of the replica that the chat goes to or, if none is open, of the chat's first choice."""
        found = self.choice(chat)
        return (found[0] if found else self.order(chat)[0]).name

    @property
    def away(self) -> bool:
        """Whether no replica answers but at least one is closed on purpose and will reopen."""
        return not any(node.worker for node in self._nodes) and any(node.away for node in self._nodes)

    async def until_open(self, prompt: Prompt) -> AsyncGenerator[None, None]:
        """Wait until `engine_for` finds an engine; yield at the start of each period in which `away` is true.

        Raises:
            EngineUnavailable: The router is closed, all replicas are failing, none has the model that the prompt
                names, or `wait_timeout` seconds have passed.
        """
        deadline: float | None = None
        reported = False
        while True:
            change = self._change
            if self._closed:
                raise EngineUnavailable(self._closed)
            if self.engine_for(prompt) is not None:
                return
            if prompt.model and not any(prompt.model in node.models for node in self._nodes):
                raise EngineUnavailable(f"No engine has the model {prompt.model}.")
            if self.away:
                deadline = None
                if not reported:
                    reported = True
                    yield
                    continue
            else:
                reported = False
                if all(node.slots.live.state is State.FAILING for node in self._nodes):
                    raise EngineUnavailable(self._nodes[0].slots.live.sentence())
                deadline = deadline or asyncio.get_running_loop().time() + self._wait_timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await change.wait()
            except TimeoutError:
                raise EngineUnavailable(self._nodes[0].slots.live.sentence()) from None


def _first(engines: Sequence[tuple[Node, Worker | None]], avoid: Worker | None) -> tuple[Node, Worker] | None:
    """Return the first open engine, using `avoid` only if no other is open, or None if none is open."""
    opened = [(node, worker) for node, worker in engines if worker is not None]
    return next((each for each in opened if each[1] is not avoid), opened[0] if opened else None)
