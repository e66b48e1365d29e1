"""The engine, the trainer and the bot are killed with SIGKILL while users chat and calls to Telegram fail.

Every question still gets one answer, and every vote counts once.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bot.admin.run_manager import INTERRUPTED
from storage.state_machines import RunState
from tests.support.community import Community, questions
from tests.support.person import DOWN, UP, Person, button

TRAINER_MODULES = (
    "training.xtuner.finetune",
    "training.merge",
    "training.gate.judge_taste",
    "training.gate.judge_candidate",
)
PATIENCE = 180.0
CALLS_FAIL = ("flood", "bad_gateway", "html_page", "reset_before", "reset_after", "cut_off", "delay")

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


class Chatter:
    """A simulated user who asks, follows up and votes until `stop` is set, and waits for every answer."""

    def __init__(self, person: Person, seed: str, stop: asyncio.Event, conversations: int) -> None:
        self._person = person
        self._seed = seed
        self._stop = stop
        self._conversations = conversations
        self.asked = 0
        self.votes: dict[int, int] = {}

    async def run(self) -> None:
        """Chat until the stop event is set and the minimum number of conversations is reached.

        The user waits for the answer to every question.
        """
        for number, question in enumerate(questions(self._seed, 500)):
            await self._ask(number, photo=question.picture, caption=question.text)
            await self._ask(number + 1, text="how many are there?")
            if self._stop.is_set() and number + 1 >= self._conversations:
                return

    async def _ask(self, number: int, *, text: str | None = None, **what: object) -> None:
        self.asked += 1
        answer = await self._person.asks(text, seconds=PATIENCE, **what)
        thumb = UP if number % 3 else DOWN
        self.votes[answer["message_id"]] = 1 if thumb == UP else -1
        await self._person.taps(thumb, answer)

    async def check(self) -> int:
        """Check that every question has one answer that can be rated, and return the number of other bot messages."""
        messages = await self._person.bot_messages()
        finals = [message for message in messages if button(message, UP)]
        assert len(finals) == self.asked, await self._person.chat_so_far()
        return len(messages) - len(finals)


async def kill_engine(community: Community, _: random.Random) -> None:
    """Kill all engines, as the kernel's out-of-memory killer would."""
    for engine in community.bot.engines():
        engine.kill()


async def kill_bot(community: Community, rng: random.Random) -> None:
    """Kill the bot and start it again, as a process supervisor would."""
    await community.bot.kill()
    await asyncio.sleep(rng.uniform(0, 1))
    await community.bot.start(healthy=False)


async def kill_trainer(community: Community, rng: random.Random) -> None:
    """Kill the worker of the current run, or of a new run if there is none, and check that the run fails."""
    async with community.ledger() as ledger:
        if await ledger.runs.active() is None:
            await ledger.runs.start("command")
    worker = await _trainer(community)
    await asyncio.sleep(rng.uniform(0, 6))
    try:
        worker.kill()
    except psutil.NoSuchProcess:
        (await _trainer(community)).kill()
    async with community.ledger() as ledger:
        newest = (await ledger.runs.latest(1))[0].id
    ended = await community.ended_run(newest)
    assert ended.state is RunState.FAILED
    assert "killed" in ended.reason.lower() or "SIGKILL" in ended.reason, ended.reason


async def _trainer(community: Community) -> psutil.Process:
    async with asyncio.timeout(90):
        while True:
            for module in TRAINER_MODULES:
                for worker in community.bot.children(module):
                    return worker
            await asyncio.sleep(0.05)


async def trouble(community: Community, rng: random.Random, stop: asyncio.Event) -> None:
    """Keep injecting Telegram and network faults until `stop` is set: failing calls and repeated updates.

    A new fault is planned only once the previous one has struck, so that even on a slow machine Telegram
    answers some calls. No bot works with a Telegram that never answers.
    """
    emulator = community.emulator
    while not stop.is_set():
        fetching = [fault for fault in emulator.faults.planned if fault.methods]
        if len(fetching) == len(emulator.faults.planned):
            kind = rng.choice(CALLS_FAIL)
            emulator.faults.plan(kind, rng.randint(1, 3), seconds=rng.uniform(0.1, 1), skip=rng.randint(0, 5))
        if not fetching:
            emulator.faults.plan(rng.choice(CALLS_FAIL), methods=["getUpdates"], seconds=1)
        emulator.world.updates.duplicates = rng.randint(0, 3)
        emulator.world.updates.held_back = rng.choice((0, 0, 2))
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(1, 4)):
                await stop.wait()
        emulator.world.updates.held_back = 0  # or the updates held back wait for a further message
        emulator.world.updates.wake()


async def chaos(folder: Path, python: str, rounds: int, *, people: int = 3, conversations: int = 1) -> None:
    """Kill the engine, bot and trainer `rounds` times each, in random order, while users chat and calls fail.

    Each of the `people` users has at least `conversations` conversations of two questions.
    """
    rng = random.Random(rounds)
    kills = [kill_engine, kill_bot, kill_trainer] * rounds
    rng.shuffle(kills)
    async with Community(folder, python=python) as community:
        await community.bot.start()
        # Without these votes there would be nothing to train on, so no trainer to kill.
        await community.vote(f"chaos-{rounds}", lambda answer: True, pictures=12)
        voted = 24
        stop = asyncio.Event()
        chatters = [
            Chatter(await community.person(), f"chaos-{rounds}-{number}", stop, conversations)
            for number in range(people)
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(trouble(community, rng, stop))
            for chatter in chatters:
                group.create_task(chatter.run())
            for kill in kills:
                await asyncio.sleep(rng.uniform(0.5, 3))
                await kill(community, rng)
            stop.set()
        assert community.emulator.faults.struck
        community.emulator.faults.clear()
        await community.bot.healthy()
        await _drained(community)
        leftovers = sum([await chatter.check() for chatter in chatters])
        async with community.ledger() as ledger:
            counts = await ledger.counts.totals()
            runs = await ledger.runs.latest(1000)
            assert leftovers <= (await ledger.counts.totals())["replies_doubtful"]
        asked = sum(chatter.asked for chatter in chatters)
        assert counts["exchanges"] == asked + voted
        assert counts["votes"] == sum(len(chatter.votes) for chatter in chatters) + voted
        assert counts["downs"] >= sum(value < 0 for chatter in chatters for value in chatter.votes.values())
        assert counts["updates_set_aside"] == 0
        failed = [run.reason for run in runs if run.state is RunState.FAILED]
        assert len(failed) >= rounds, "no run survives its trainer"
        assert [reason for reason in failed if reason != INTERRUPTED and "signal SIGKILL" not in reason] == []
        await _another_run_can_be_started_and_cancelled(community)
        await _a_run_dies_with_the_bot(community)


async def _drained(community: Community) -> None:
    """Wait until the bot has fetched and handled all updates."""
    async with asyncio.timeout(PATIENCE), community.ledger() as ledger:
        # An update that is confirmed to Telegram is in the ledger, so the order of the conditions matters.
        while len(community.emulator.world.updates) or (await ledger.counts.totals())["updates_pending"]:
            await asyncio.sleep(0.1)


async def _another_run_can_be_started_and_cancelled(community: Community) -> None:
    async with community.ledger() as ledger:
        if active := await ledger.runs.active():
            await community.ended_run(active.id)
        await ledger.runs.start("command")
        await _trainer(community)
        await community.admin.sends("/cancel")
        run = await community.ended_run()
    assert run.state is RunState.CANCELLED
    async with asyncio.timeout(30):
        while any(community.bot.children(module) for module in TRAINER_MODULES):
            await asyncio.sleep(0.1)


async def _a_run_dies_with_the_bot(community: Community) -> None:
    """Kill the bot in the middle of a run, and check that the trainer ends.

    Also check that the bot, once restarted, marks the run as failed.
    """
    await community.admin.sends("/retrain")
    worker = await _trainer(community)
    await community.bot.kill()
    await asyncio.to_thread(worker.wait, 10)
    await community.bot.start()
    run = await community.ended_run()
    assert (run.state, run.reason) == (RunState.FAILED, INTERRUPTED)


async def test_three_kills(tmp_path: Path, warm_python: str) -> None:
    """Nothing is lost or duplicated when the engine, the bot and the trainer are killed once each.

    Meanwhile, calls to Telegram fail and updates arrive twice.
    """
    await chaos(tmp_path, warm_python, rounds=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("rounds", "people", "conversations"),
    [pytest.param(2, 3, 1, id="six kills"), pytest.param(20, 10, 20, id="sixty kills, 200 conversations")],
)
async def test_many_kills(tmp_path: Path, warm_python: str, rounds: int, people: int, conversations: int) -> None:
    """Nothing is lost or duplicated when the engine, bot and trainer are killed `rounds` times each.

    Meanwhile, several users chat, calls to Telegram fail, and updates arrive twice.
    """
    await chaos(tmp_path, warm_python, rounds, people=people, conversations=conversations)
