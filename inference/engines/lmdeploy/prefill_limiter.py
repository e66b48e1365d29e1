"""Lets prompts into an engine as many at a time as it computes at once, so that none is cut in two.

TurboMind computes at most so many prompt tokens an iteration and cuts the prompt that crosses the limit; a picture
that is cut goes through the vision tower twice, whole each time. Held back here until there is room, every prompt is
computed in one piece, and while some are computed the next ones already wait inside. Knows token counts and
fingerprints of pictures, nothing of lmdeploy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from cachetools import LRUCache

_PICTURES: Final = 4096


class PrefillGate:
    """`tokens` is what the engine computes in one iteration. Used from one event loop; first come, first served."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._inside = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._seen: LRUCache[bytes, None] = LRUCache(_PICTURES)

    @property
    def waiting(self) -> int:
        """How many prompts are held back."""
        return sum(not turn.done() for _, turn in self._queue)

    def cost(self, tokens: int, pictures: Iterable[tuple[bytes, int]]) -> int:
        """Of a prompt's tokens those that probably are computed: a picture (fingerprint, tokens) seen lately is not.

        A wrong guess costs time only.
        """
        for fingerprint, part in pictures:
            if fingerprint in self._seen:
                tokens -= part
            self._seen[fingerprint] = None
        return max(tokens, 1)

    @asynccontextmanager
    async def room(self, cost: int) -> AsyncIterator[Callable[[], None]]:
        """Wait for room and hold it until the context's end, or until what it yields is called: whichever is first."""
        await self._enter(cost)
        held = [cost]

        def leave() -> None:
            if held:
                self._leave(held.pop())

        try:
            yield leave
        finally:
            leave()

    async def _enter(self, cost: int) -> None:
        if not self._queue and self._fits(cost):
            self._inside += cost
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((cost, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # Behind a prompt that needs much room one may wait that needs little.
                self._admit()
            else:
                self._leave(cost)
            raise

    def _leave(self, cost: int) -> None:
        self._inside -= cost
        self._admit()

    def _fits(self, cost: int) -> bool:
        return not self._inside or self._inside + cost <= self._tokens

    def _admit(self) -> None:
        while self._queue:
            cost, turn = self._queue[0]
            if not turn.cancelled():
                if not self._fits(cost):
                    return
                self._inside += cost
                turn.set_result(None)
            self._queue.popleft()
