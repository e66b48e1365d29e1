"""The next process completes what a stopped or killed bot left unfinished and answers each question once."""

from __future__ import annotations

import asyncio

import pytest

from storage.ledger import Ledger
from tests.support.chatting import Notebook, RunningBot, ScriptedEngine, Stage, png, settings, until
from tests.support.killing import all_sends, killed_while, nothing_pending
from tests.support.person import UP, Person, button


@pytest.mark.parametrize("shown", [0, 1], ids=["before any word", "in mid-answer"])
async def test_a_stopped_answer_is_finished_by_the_next_process(stage: Stage, shown: int) -> None:
    """An answer interrupted by a stop is completed by the next process in the same message."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never] if shown else [never]), Notebook())
        first.start()
        await ada.sends(photo=png(), caption="What?")
        await until(lambda: bool(first.engine.prompts))
        await until(lambda: last_text(stage, ada) == ("Half" if shown else "Looking at your picture…"))
        await first.stop(grace=0)
        assert first.engine.ended == 1
        async with stage.bot("Whole.") as second:
            assert (await ada.answer(rated=True))["text"] == "Whole."
            await second.settled()
            assert len(await ada.bot_messages()) == 1
            assert second.engine.prompts[0].turns[0].text == "What?"
            assert (await second.ledger.counts.totals())["exchanges"] == 1


async def test_a_recorded_answer_is_shown_without_the_engine(stage: Stage) -> None:
    """If the bot stops between recording and showing an answer, the next process shows the recorded answer."""
    stage.emulator.faults.plan("flood", 1, methods=["editMessageText"], seconds=600)
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine("Recorded."), Notebook())
        first.start()
        await ada.sends(photo=png())
        await until(lambda: stage.emulator.faults.planned == [])
        async with asyncio.timeout(10):
            while (await first.ledger.counts.totals())["exchanges"] == 0:
                await asyncio.sleep(0.02)
        await first.stop(grace=0)
        async with stage.bot("Something else.") as second:
            answer = await ada.answer(rated=True)
            assert answer["text"] == "Recorded."
            assert button(answer, UP) == "rate:1:1"
            assert not second.engine.prompts
            assert len(await ada.bot_messages()) == 1


async def test_a_finished_reply_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bot stops after a reply's last edit, the next process marks the update as done and sends nothing."""
    reached = asyncio.Event()

    async def never(update: int, unreachable: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    made = settings(stage.url, stage.emulator.token)
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        monkeypatch.setattr(first.ledger.inbox, "finish", never)
        first.start()
        await ada.asks(photo=png())
        await bob.command("/help")
        await bob.answer(rated=False, quiet=0.2)
        await reached.wait()
        assert len(await first.ledger.inbox.pending()) == 2
        await first.stop(grace=0)
        counts = [stage.emulator.counts(person.id) for person in (ada, bob)]
        before = [(each.sends, each.edits) for each in counts]
        async with stage.bot() as second:
            await until(lambda: nothing_pending(second.ledger))
            assert not second.engine.prompts
            assert [(each.sends, each.edits) for each in counts] == before


async def test_an_interrupted_album_is_one_question_again(stage: Stage) -> None:
    """After a restart, an interrupted album is again handled as one question with all its pictures."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine([never]), Notebook())
        first.start()
        await ada.sends(album=[png(colour=colour, form="JPEG") for colour in ("red", "blue")], caption="Both?")
        await until(lambda: len(first.engine.prompts) == 1)
        await first.stop(grace=0)
        async with stage.bot("Both.") as second:
            assert (await ada.answer(rated=True))["text"] == "Both."
            await second.settled()
            assert len(second.engine.prompts[0].turns[0].pictures) == 2
            assert len(await ada.bot_messages()) == 1


async def test_an_album_that_was_answered_is_not_answered_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop, the remaining updates of an answered album are marked as done without a second answer."""
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        finish = first.ledger.inbox.finish
        ticked: list[int] = []

        async def only_one(update: int, unreachable: str) -> None:
            if ticked:
                await asyncio.Event().wait()
            ticked.append(update)
            await finish(update, unreachable)

        monkeypatch.setattr(first.ledger.inbox, "finish", only_one)
        first.start()
        await ada.asks(album=[png(colour=colour, form="JPEG") for colour in ("red", "green", "blue")])
        await until(lambda: bool(ticked))
        await first.stop(grace=0)
        async with stage.bot() as second:
            await until(lambda: nothing_pending(second.ledger))
            assert not second.engine.prompts
            assert len(await ada.bot_messages()) == 1


async def test_killed_again_and_again_every_question_gets_one_answer(stage: Stage) -> None:
    """Despite `kill -9` at arbitrary moments, every question gets one answer and every vote counts once.

    Nothing is left unfinished.
    """
    await killed_while_people_talk(stage, kills=6, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
async def test_killed_ten_times(stage: Stage, seed: int) -> None:
    """Even after ten kills at arbitrary moments, every question gets one answer and every vote counts once."""
    await killed_while_people_talk(stage, kills=10, seed=seed)


async def killed_while_people_talk(stage: Stage, kills: int, seed: int) -> None:
    """Kill the bot while three users ask and vote, then check that every answer and vote is recorded once."""
    questions = kills + 3
    asked = 3 * questions
    people = [Person(stage.url, 2000 + number, f"P{number}") for number in range(3)]

    async def talk(person: Person) -> None:
        for number in range(questions):
            answer = await person.asks(photo=png(), caption=f"thing {number}", seconds=120)
            await person.taps(UP, answer)

    try:
        await killed_while(stage, people, talk, kills=kills, seed=seed)
        async with Ledger.open(stage.directory) as ledger:
            counts = await ledger.counts.totals()
        for person in people:
            rated = [message["text"] for message in await person.bot_messages() if button(message, UP)]
            assert rated == [f"About thing {number}: all is well." for number in range(questions)]
        assert (counts["exchanges"], counts["votes"], counts["ups"]) == (asked, asked, asked)
        assert asked <= all_sends(stage, people) <= asked + counts["replies_doubtful"]
    finally:
        for person in people:
            await person.close()


def last_text(stage: Stage, person: Person) -> str:
    """Return the text of the last message in the user's chat."""
    messages = list(stage.emulator.world.chats[person.id].messages.values())
    return str(messages[-1].get("text", "")) if messages else ""
