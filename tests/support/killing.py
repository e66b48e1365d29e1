"""`kill -9` of the bot, again and again, while people talk to it: what tests of crashes share."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.process
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from storage.ledger import Ledger
from tests.support.chatting import Stage, live, until
from tests.support.person import Person

# A process that has imported everything once and forks: starting anew takes a moment instead of seconds.
FORGE = multiprocessing.get_context("forkserver")
FORGE.set_forkserver_preload(["tests.support.chatting"])

Talk = Callable[[Person], Awaitable[None]]


async def killed_while(
    stage: Stage, people: Sequence[Person], talk: Talk, *, kills: int, seed: int, told: Sequence[Person] = ()
) -> None:
    """Run a bot that is killed at arbitrary moments while all people talk; return when it has done all that was asked.

    The moments lie between messages to them, or to those who are `told` something. The last process goes on running
    until all is done and is killed as well.
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
    """Whether every update is done or set aside."""
    return not await ledger.inbox.pending()


def all_sends(stage: Stage, people: Sequence[Person]) -> int:
    """How many messages the bot has sent to them."""
    return sum(stage.emulator.counts(person.id).sends for person in people)


async def _all(talk: Talk, people: Sequence[Person]) -> None:
    await asyncio.gather(*(talk(person) for person in people))


def _enough_sent(stage: Stage, people: Sequence[Person], target: int, talking: asyncio.Future[None]) -> bool:
    """Whether the bot has come so far, or everything is said."""
    return talking.done() or all_sends(stage, people) >= target
