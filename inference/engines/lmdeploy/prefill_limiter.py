"""Admits prompts to an engine so that each is computed in one iteration.

TurboMind computes at most `max_prefill_token_num` prompt tokens in an iteration and splits the prompt that crosses the
limit; a picture that is split goes through the vision tower twice, as a whole each time. Prompts therefore wait here
until they fit into an iteration.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from cachetools import LRUCache

_PICTURES: Final = 4096


class PrefillLimiter:
    """Limits the prompt tokens in prefill; prompts are admitted in order. Use it in one event loop.

    Args:
        tokens: The prompt tokens that the engine computes in one iteration.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._admitted = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._seen: LRUCache[bytes, None] = LRUCache(_PICTURES)

    @property
    def waiting(self) -> int:
        """Number of prompts that wait."""
        return sum(not turn.done() for _, turn in self._queue)

    def cost(self, tokens: int, pictures: Iterable[tuple[bytes, int]]) -> int:
        """Estimate how many of a prompt's tokens will be computed: all but those of recently seen pictures.

        Args:
            tokens: The number of all tokens of the prompt.
            pictures: The fingerprint and token count of each picture. Recent ones are assumed to be in the cache.
        """
        for fingerprint, part in pictures:
            if fingerprint in self._seen:
                tokens -= part
            self._seen[fingerprint] = None
        return max(tokens, 1)

    @asynccontextmanager
    async def room(self, cost: int) -> AsyncIterator[Callable[[], None]]:
        """Wait for room and hold it until the block ends, or until the yielded function is called."""
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
            self._admitted += cost
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((cost, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # A large prompt that stops waiting may have blocked a small one.
                self._admit()
            else:
                self._leave(cost)
            raise

    def _leave(self, cost: int) -> None:
        self._admitted -= cost
        self._admit()

    def _fits(self, cost: int) -> bool:
        return not self._admitted or self._admitted + cost <= self._tokens

    def _admit(self) -> None:
        while self._queue:
            cost, turn = self._queue[0]
            if not turn.cancelled():
                if not self._fits(cost):
                    return
                self._admitted += cost
                turn.set_result(None)
            self._queue.popleft()
