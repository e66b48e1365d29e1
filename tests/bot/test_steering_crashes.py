"""Retries, stops and edits each take effect exactly once, even if the bot is stopped or killed."""

from __future__ import annotations

import asyncio

import pytest

from bot.telegram.keyboards import AGAIN
from storage.ledger import Ledger
from tests.support.chatting import Notebook, RunningBot, ScriptedEngine, Stage, png, settings, shows, until
from tests.support.killing import all_sends, killed_while
from tests.support.person import UP, Person, button

STOP = "⏹"


async def test_a_stop_and_an_edit_survive_a_restart(stage: Stage) -> None:
    """A stop and an edit requested while no bot runs are each carried out once by the next process."""
    never = asyncio.Event()
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never], ["Half", never]), Notebook())
        first.start()
        await ada.sends(photo=png(), caption="a?")
        unfinished = await shows(ada, "Half")
        question = await bob.sends(photo=png(), caption="a?")
        await shows(bob, "Half")
        await first.stop(grace=0)
        await ada.taps(STOP, unfinished)
        await bob.edits(question, "b?")

        engine = ScriptedEngine(otherwise=lambda prompt, _: ["So", *([never] if prompt.turns[-1].text == "a?" else [])])
        async with stage.bot(engine=engine) as second:
            assert (await bob.answer(rated=True, after=question["message_id"]))["text"] == "So"
            await second.settled()
            (stopped,) = await ada.bot_messages()
            assert button(stopped, STOP) is None
            assert stopped["text"] in ("So", "I stopped before writing anything.")
            assert len(await bob.bot_messages()) == 1
            assert await second.ledger.inbox.pending() == []


@pytest.mark.parametrize("moment", range(2))
async def test_steering_survives_stops_at_any_moment(stage: Stage, moment: int) -> None:
    """If the bot is stopped while a user retries and edits, each request is still carried out once."""

    def slowly(prompt: object, number: int) -> list[str | float]:
        return [0.03, "Part ", 0.03, f"{number}."]

    made = settings(stage.url, stage.emulator.token)
    bot = RunningBot(made, stage.directory, ScriptedEngine(otherwise=slowly), Notebook())
    bot.start()

    async def restarted() -> None:
        nonlocal bot
        await asyncio.sleep(0.03 + 0.07 * moment)
        await bot.stop(grace=0)
        bot = RunningBot(made, stage.directory, ScriptedEngine(otherwise=slowly), Notebook())
        bot.start()

    try:
        async with stage.person() as ada:
            question = await ada.sends(photo=png(), caption="a?")
            first = await ada.answer(rated=True)
            await ada.taps(AGAIN, first)
            await restarted()
            second = await ada.answer(rated=True, after=first["message_id"])
            await ada.edits(question, "b?")
            await restarted()
            await until(lambda: _exchanges(bot, 3))
            await bot.settled()
            messages = await ada.bot_messages()
            assert [button(each, UP) for each in messages if button(each, UP)] == ["rate:1:1", "rate:3:1"]
            assert len(messages) <= 2 + (await bot.ledger.counts.totals())["replies_doubtful"]
            assert messages[-1]["message_id"] >= second["message_id"]
    finally:
        await bot.stop(grace=0)


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), *(pytest.param(8, seed, marks=pytest.mark.soak) for seed in range(2, 8))]
)
async def test_steering_survives_kills(stage: Stage, kills: int, seed: int) -> None:
    """Despite `kill -9`, each question gets one answer, each retry adds one, and each edit replaces one."""
    rounds = kills + 1
    people = [Person(stage.url, 2000 + number, f"P{number}") for number in range(2)]

    async def talk(person: Person) -> None:
        for number in range(rounds):
            question = await person.sends(photo=png(), caption=f"thing {number}")
            first = await person.answer(rated=True, seconds=120)
            await person.taps(AGAIN, first)
            second = await person.answer(rated=True, after=first["message_id"], seconds=120)
            await person.edits(question, f"stuff {number}")
            await changed(person, second["message_id"], "stuff")

    async def changed(person: Person, message: int, word: str) -> None:
        """Wait until `message` or a later one shows a finished answer that contains `word`."""
        await until(lambda: shows_final(person, message, word), seconds=120)

    async def shows_final(person: Person, message: int, word: str) -> bool:
        found = [each for each in await person.bot_messages() if each["message_id"] >= message and button(each, UP)]
        return any(word in each["text"] for each in found)

    try:
        await killed_while(stage, people, talk, kills=kills, seed=seed)
        for person in people:
            rated = [message["text"] for message in await person.bot_messages() if button(message, UP)]
            wanted = [f"About {word} {number}: all is well." for number in range(rounds) for word in ("thing", "stuff")]
            assert rated == wanted, await person.chat_so_far()
        async with Ledger.open(stage.directory) as ledger:
            assert (await ledger.counts.totals())["exchanges"] == 3 * rounds * len(people)
            sends = all_sends(stage, people)
            needed, doubtful = 2 * rounds * len(people), (await ledger.counts.totals())["replies_doubtful"]
            assert needed <= sends <= needed + doubtful
    finally:
        for person in people:
            await person.close()


async def _exchanges(bot: RunningBot, number: int) -> bool:
    return (await bot.ledger.counts.totals())["exchanges"] == number
