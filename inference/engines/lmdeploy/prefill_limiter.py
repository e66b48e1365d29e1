"""Admission of prompts to an engine so that each prompt with a new picture is processed in one iteration.

TurboMind processes at most `max_prefill_token_num` prompt tokens in an iteration and splits a prompt that
crosses the limit. If the split is inside a picture, the whole picture goes through the vision tower
twice. Prompts with new pictures therefore wait until they fit into an iteration. Other prompts, such as
follow-up questions, never wait, because splitting them does no harm; part of each iteration is left for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from cachetools import LRUCache

_RESERVED: Final = 1024
"""The number of tokens in an iteration that are left for prompts without new pictures, but at most a quarter."""


class PrefillLimiter:
    """Limiter for the number of prompt tokens in prefill, which admits prompts with new pictures in order.

    The limiter may be used in one event loop only.

    Args:
        tokens: The number of prompt tokens that the engine processes in one iteration.
        cache_tokens: The size of the engine's KV cache in tokens. The pictures that were processed last are assumed
            to be cached, up to this number of tokens.
    """

    def __init__(self, tokens: int, cache_tokens: int) -> None:
        self.waiting = 0
        """Number of waiting prompts."""
        self._tokens = tokens - min(_RESERVED, tokens // 4)
        self._admitted = 0
        self._next = asyncio.Lock()
        self._freed = asyncio.Event()
        self._cached = LRUCache[bytes, int](cache_tokens, getsizeof=lambda part: part)

    def cost(self, tokens: int, pictures: Mapping[bytes, int]) -> int:
        """Estimate how many tokens of a prompt the engine must process; return 0 if it has no new picture.

        Args:
            tokens: The total number of tokens in the prompt.
            pictures: The number of tokens of each picture, by its fingerprint.
        """
        cached = [part for fingerprint, part in pictures.items() if fingerprint in self._cached]
        return tokens - sum(cached) if len(cached) < len(pictures) else 0

    @asynccontextmanager
    async def room(self, tokens: int, pictures: Mapping[bytes, int]) -> AsyncIterator[Callable[[], None]]:
        """Wait until a prompt fits, and reserve its cost until the block ends or the yielded function is called.

        Call the yielded function when the prompt has been processed. The arguments are those of `cost`.
        """
        cost = self.cost(tokens, pictures)
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

        def processed() -> None:
            if held:
                self._cached.update(pictures)
            leave()

        try:
            yield processed
        finally:
            leave()
