"""Helpers for crash tests that repeatedly kill the bot with `kill -9` while users chat."""

from __future__ import annotations

import asyncio
import multiprocessing.process
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from storage.ledger import Ledger
from tests.support.bot_process import FORGE
from tests.support.chatting import Stage, live, until
from tests.support.person import Person

Talk = Callable[[Person], Awaitable[None]]


async def killed_while(
    stage: Stage, people: Sequence[Person], talk: Talk, *, kills: int, seed: int, told: Sequence[Person] = ()
) -> None:
    """Kill and restart a bot `kills` times while users chat, then wait until every update is handled.

    Each kill comes at a random moment after the bot has sent a few more messages to `people`, or to `told`
    if given. The last process runs until every update is handled and is then killed as well.
    """
    readers = told or people
    moments = random.Random(seed)

    def start() -> multiprocessing.process.BaseProcess:
        process = FORGE.Process(target=live, args=(stage.url, stage.emulator.token, str(stage.directory)))
        process.start()
        return process

    for person in people:
        await person.arrives()
    talking = asyncio.ensure_future(_all(talk, people))
    bot = start()
    try:
        for _ in range(kills):
            target = all_sends(stage, readers) + moments.randint(1, 3)
            await until(partial(_enough_sent, stage, readers, target, talking), seconds=120)
            await asyncio.sleep(moments.uniform(0, 0.3))
            bot.kill()
            await asyncio.to_thread(bot.join)
            bot = start()
        await talking
        await until(
            lambda: not len(stage.emulator.world.updates), seconds=60
        )  # the last taps may still be on their way
        async with Ledger.open(stage.directory) as ledger:
            await until(partial(nothing_pending, ledger), seconds=60)
    finally:
        talking.cancel()
        bot.kill()
        await asyncio.to_thread(bot.join)


async def nothing_pending(ledger: Ledger) -> bool:
    """Return whether every update is done or a dead letter."""
    return not await ledger.inbox.pending()


def all_sends(stage: Stage, people: Sequence[Person]) -> int:
    """Return the number of messages that the bot has sent to `people`."""
    return sum(stage.emulator.counts(person.id).sends for person in people)


async def _all(talk: Talk, people: Sequence[Person]) -> None:
    await asyncio.gather(*(talk(person) for person in people))


def _enough_sent(stage: Stage, people: Sequence[Person], target: int, talking: asyncio.Future[None]) -> bool:
    """Return whether the bot has sent `target` messages, or the conversations are over."""
    return talking.done() or all_sends(stage, people) >= target
