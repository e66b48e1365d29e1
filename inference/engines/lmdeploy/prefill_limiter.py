"""Admission of prompts to an engine so that each prompt with a new picture is processed in one iteration.

TurboMind processes at most `max_prefill_token_num` prompt tokens in an iteration and splits a prompt that
crosses the limit. If the split is inside a picture, the whole picture goes through the vision tower
twice. Prompts with new pictures therefore wait until they fit into an iteration. Other prompts, such as
follow-up questions, are short or may be split, so they never wait; part of each iteration is left for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from cachetools import LRUCache

_PICTURES: Final = 4096
"""The number of pictures that are remembered as seen."""

_RESERVED: Final = 1 / 4
"""The fraction of an iteration that is left for prompts without new pictures."""


class PrefillLimiter:
    """Limiter for the number of prompt tokens in prefill, which admits prompts with new pictures in order.

    The limiter may be used in one event loop only.

    Args:
        tokens: The number of prompt tokens that the engine processes in one iteration.
    """

    def __init__(self, tokens: int) -> None:
        self.waiting = 0
        """Number of waiting prompts."""
        self._tokens = tokens - int(tokens * _RESERVED)
        self._admitted = 0
        self._next = asyncio.Lock()
        self._freed = asyncio.Event()
        self._seen: LRUCache[bytes, None] = LRUCache(_PICTURES)

    def cost(self, tokens: int, pictures: Iterable[tuple[bytes, int]]) -> int:
        """Estimate how many tokens the engine must process for a prompt with new pictures; return 0 for other prompts.

        Args:
            tokens: The total number of tokens in the prompt.
            pictures: The fingerprint and token count of each picture. Recently seen pictures are assumed to be
                cached.
        """
        new = 0
        for fingerprint, part in pictures:
            if fingerprint in self._seen:
                tokens -= part
            else:
                new += part
            self._seen[fingerprint] = None
        return tokens if new else 0

    @asynccontextmanager
    async def room(self, cost: int) -> AsyncIterator[Callable[[], None]]:
        """Wait until `cost` tokens fit, and reserve them until the block ends or the yielded function is called."""
        if cost:
            self.waiting += 1
            try:
                # The lock is acquired in order, so only the first prompt waits here, and no other overtakes it.
                async with self._next:
                    while self._admitted and self._admitted + cost > self._tokens:
                        self._freed.clear()
                        await self._freed.wait()
                    self._admitted += cost
            finally:
                self.waiting -= 1
        held = [cost]

        def leave() -> None:
            if held:
                self._admitted -= held.pop()
                self._freed.set()

        try:
            yield leave
        finally:
            leave()
