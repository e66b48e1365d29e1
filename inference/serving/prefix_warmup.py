"""Warm-up of engines with the newest prompts of the recently active chats that move to them.

A follow-up question is answered quickly because the engine has the conversation, including pictures, in
its prefix cache. Therefore, before a chat moves to another engine, its newest prompt is sent to that
engine with a limit of one token. If the warm-up fails, the prefix is simply not cached.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final
from weakref import WeakSet

import structlog

from inference.chat_format.template import pictures
from inference.messages import EngineCrashed, EngineRejected, Prompt
from inference.serving.engine_process import Worker
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

_PICTURE_BYTES: Final = 256 * 2**20
"""The maximum total size of the pictures of all chats, in bytes."""

_SECONDS: Final = 20.0
"""The time limit of one warm-up, in seconds."""

_AT_ONCE: Final = 4
"""The number of prompts sent at a time to an engine without chats; an engine in use gets one at a time."""


@dataclass(eq=False, slots=True)
class RecentChat:
    """A recently active chat.

    Attributes:
        prompt: The newest prompt that was answered.
        when: The time of the answer, in seconds on the monotonic clock.
        warm: The workers that have the prompt cached.
        barred: Whether the prompt must not be sent again, because it failed once and may crash engines, or
            because the chat was forgotten.
    """

    prompt: Prompt
    when: float
    warm: WeakSet[Worker] = field(default_factory=WeakSet)
    barred: bool = False

    @property
    def key(self) -> str:
        """Key of the chat."""
        return self.prompt.chat

    @property
    def size(self) -> int:
        """Total size of the chat's pictures in bytes."""
        return sum(len(picture.data) for picture in pictures(self.prompt))


class RecentChats:
    """The chats with an answer in the last `warm_age` seconds, at most `warm_chats` of them."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._most = settings.warm_chats
        self._age = settings.warm_age
        self._chats: dict[str, RecentChat] = {}
        self._bytes = 0

    def answered(self, prompt: Prompt, worker: Worker) -> None:
        """Record that `worker` has processed the chat's newest prompt."""
        self._drop(prompt.chat)
        chat = self._chats[prompt.chat] = RecentChat(prompt, monotonic(), WeakSet((worker,)))
        self._bytes += chat.size
        while len(self._chats) > self._most or self._bytes > _PICTURE_BYTES:
            self._drop(next(iter(self._chats)))

    def newest_first(self) -> list[RecentChat]:
        """Return the recently active chats, newest first."""
        oldest = monotonic() - self._age
        for key in [chat.key for chat in self._chats.values() if chat.when < oldest]:
            self._drop(key)
        return list(reversed(self._chats.values()))

    def forget(self, key: str) -> None:
        """Remove the chat's prompt, even from a warm-up in progress."""
        chat = self._drop(key)
        if chat is not None:
            chat.barred = True

    def _drop(self, key: str) -> RecentChat | None:
        chat = self._chats.pop(key, None)
        if chat is not None:
            self._bytes -= chat.size
        return chat


class Warmer:
    """Component that warms up workers by sending them prompts with a limit of one token.

    `warmed` is the number of prompts processed.
    """

    def __init__(self) -> None:
        self.warmed = 0

    async def warm(self, plan: Iterable[tuple[RecentChat, Worker]]) -> bool:
        """Process each chat's prompt on its worker, in order, and return False if the time limit was exceeded.

        A worker that is already in use gets one prompt at a time, so that questions can be answered in between;
        other workers get several at a time.
        """
        waiting: dict[Worker, list[RecentChat]] = defaultdict(list)
        for chat, worker in plan:
            if worker not in chat.warm:
                waiting[worker].append(chat)
        if not waiting:
            return True
        try:
            async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as group:
                for worker, chats in waiting.items():
                    queue = iter(chats)
                    for _ in range(1 if worker.open else _AT_ONCE):
                        group.create_task(self._compute_all(queue, worker))
        except TimeoutError:
            _log.warning("not all chats were warmed up in time", seconds=_SECONDS)
            return False
        return True

    async def _compute_all(self, chats: Iterable[RecentChat], worker: Worker) -> None:
        for chat in chats:
            if worker.broken:
                return
            if chat.barred:
                continue
            try:
                await worker.compute(chat.prompt)
            except Exception as error:  # noqa: BLE001 - a failed warm-up does no harm
                chat.barred = True
                if isinstance(error, EngineCrashed):
                    await worker.suspect(error)
                # The text of a server's refusal may quote the question.
                why = type(error).__name__ if isinstance(error, EngineRejected) else str(error)
                _log.info("a chat could not be warmed up", chat=chat.key, model=worker.model_id, why=why)
            else:
                chat.warm.add(worker)
                self.warmed += 1
