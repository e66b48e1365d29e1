"""What people see while an answer grows: that somebody types, drafts instead of edits, and fair shares of the pace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.telegram import Gate, Glimpse, open_bot
from inference.messages import Delta
from tests.chatting import Notebook, RunningBot, ScriptedEngine, Stage, png, settings, shows, told, until
from tests.emulated import refusal
from tests.person import UP, Person, button

DRAFTS: dict[str, Any] = {"drafts": True}


def draft(stage: Stage, person: Person) -> str | None:
    """The text of the draft that the person sees, None without any."""
    shown = stage.emulator.world.chats[person.id].draft
    return None if shown is None else str(shown["text"])


async def test_somebody_types_while_the_answer_is_awaited(stage: Stage) -> None:
    """After the placeholder the chat shows that the bot is typing; whatever ails that call costs no answer."""
    gate = asyncio.Event()
    stage.emulator.faults.plan("bad_gateway", 1, methods=["sendChatAction"])
    async with stage.bot(["So", gate, "."], [0.5, "Next."]), stage.person() as ada:
        await ada.sends(photo=png())
        await shows(ada, "So")
        await until(lambda: stage.emulator.calls.get("sendchataction", 0) == 1)
        gate.set()
        assert (await ada.answer(rated=True))["text"] == "So."
        since = stage.emulator.world.events.last
        await ada.asks("And?")
        assert stage.emulator.calls["sendchataction"] == 2
        async with asyncio.timeout(10):
            events = stage.emulator.world.events.follow(since, lambda event: event["kind"] == "action")
            assert (await anext(events))["action"] == "typing"


async def test_a_draft_grows_and_becomes_the_answer(stage: Stage) -> None:
    """With drafts on there is one message: the answer, once, with its thumbs; before it a draft that grew."""
    gates = [asyncio.Event(), asyncio.Event()]
    async with (
        stage.bot([gates[0], "The **first**", gates[1], " words."], telegram=DRAFTS) as bot,
        stage.person() as ada,
    ):
        await ada.sends(photo=png())
        await until(lambda: draft(stage, ada) == "Looking at your picture…")
        gates[0].set()
        await until(lambda: draft(stage, ada) == "The first")
        assert await ada.bot_messages() == []
        gates[1].set()
        answer = await ada.answer(rated=True)
        assert answer["text"] == "The first words."
        assert draft(stage, ada) is None
        await bot.settled()
        counts = await ada.counts()
        assert (counts["sends"], counts["edits"]) == (1, 0)


async def test_a_draft_can_be_stopped(stage: Stage) -> None:
    """The Stop of a draft ends the answer like ⏹ does: what came is kept and can be rated."""
    never = asyncio.Event()
    async with stage.bot(["Half", never], telegram=DRAFTS) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await until(lambda: draft(stage, ada) == "Half")
        stage.emulator.people.stops_draft(ada.id)
        assert (await ada.answer(rated=True))["text"] == "Half"
        assert (await bot.ledger.exchange(1)).finish == "abort"


async def test_drafts_give_way_to_edits(stage: Stage) -> None:
    """Where Telegram takes no drafts, in groups and for questions answered in place, answers grow by edits."""
    stage.emulator.faults.plan("unknown", 1, methods=["sendMessageDraft"])
    gate = asyncio.Event()
    async with stage.bot(["One", gate, "."], telegram=DRAFTS) as bot, stage.person() as ada:
        question = await ada.sends(photo=png())
        await shows(ada, "One")
        assert draft(stage, ada) is None
        gate.set()
        first = await ada.answer(rated=True)
        await ada.edits(question, "What else?")
        await shows(ada, "Answer 2")
        group = stage.emulator.add_group("Friends", [ada.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        await ada.answer(rated=True, chat=group)
        await bot.settled()
        assert [each["message_id"] for each in await ada.bot_messages()] == [first["message_id"]]
        assert stage.emulator.calls["sendmessagedraft"] == 1


async def test_an_interrupted_draft_is_answered_once(stage: Stage) -> None:
    """A process that ends while a draft is shown leaves no message; the next one answers."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token, DRAFTS)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never]), Notebook())
        first.start()
        await ada.sends(photo=png())
        await until(lambda: draft(stage, ada) == "Half")
        await first.stop(grace=0)
        async with stage.bot("Whole.", telegram=DRAFTS) as second:
            assert (await ada.answer(rated=True))["text"] == "Whole."
            await second.settled()
            assert len(await ada.bot_messages()) == 1


async def test_bad_drafts_are_refused(stage: Stage) -> None:
    """Drafts go to private chats, have a number and the length of messages; Stop is there where it was asked for."""
    async with stage.bot() as bot, stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        with refusal("Bad Request: TEXTDRAFT_PEER_INVALID"):
            await bot.bot.send_message_draft(group, 1, text="x")
        with refusal("Bad Request: RANDOM_ID_INVALID"):
            await bot.bot.send_message_draft(ada.id, 0, text="x")
        with refusal("Bad Request: message is too long"):
            await bot.bot.send_message_draft(ada.id, 1, text="x" * 4097)
        assert await bot.bot.send_message_draft(ada.id, 1)
        assert draft(stage, ada) == ""
        with pytest.raises(Exception, match="nothing to stop"):
            stage.emulator.people.stops_draft(ada.id)
        assert await bot.bot.send_message_draft(ada.id, 1, text="x", can_stop=True)
        stage.emulator.people.stops_draft(ada.id)
        assert draft(stage, ada) is None


async def test_growing_answers_leave_room_for_final_ones(stage: Stage) -> None:
    """With the allowance over all chats nearly used up, unfinished texts are dropped and messages still go out."""
    made = settings(stage.url, stage.emulator.token, {"calls_per_second": 12})
    gate = Gate(made.telegram)
    bot = open_bot(made.telegram, gate)
    try:
        async with stage.person() as ada:
            message = await bot.send_message(ada.id, "0")
            taken = []
            for number in range(1, 30):
                edit: Any = Glimpse(chat_id=ada.id, message_id=message.message_id, text=str(number))
                taken.append(bool(await bot(edit)))
            assert taken[0] and not taken[-1]
            assert gate.counts["dropped"] > 0
            async with asyncio.timeout(1):
                await bot.send_message(ada.id, "In spite of it")
    finally:
        await bot.session.close()


async def test_many_answers_at_once_all_arrive(stage: Stage) -> None:
    """Telegram's limits on, a dozen people answered at once: every answer comes whole, hardly a call is refused."""
    stage.emulator.flood.on = True

    def slowly(prompt: object, number: int) -> list[str | float | Delta]:
        return [step for word in range(20) for step in (f"{word} ", 0.02)]

    engine = ScriptedEngine(otherwise=slowly)
    async with stage.bot(engine=engine, telegram={"calls_per_second": 28, "edit_seconds": 0.3}):
        people = [Person(stage.url, 3000 + number, f"P{number}") for number in range(12)]
        try:
            answers = await asyncio.gather(*(person.asks(photo=png(), seconds=120) for person in people))
        finally:
            await asyncio.gather(*(person.close() for person in people))
        assert {answer["text"] for answer in answers} == {" ".join(str(word) for word in range(20))}
        assert all(button(answer, UP) for answer in answers)
        assert stage.emulator.flood.refusals <= len(people)


async def test_a_refused_question_needs_no_draft(stage: Stage) -> None:
    """What is said at once is said in a message."""
    async with stage.bot(telegram=DRAFTS), stage.person() as ada:
        assert "have not seen" in (await told(ada, "Hello"))["text"]
        assert "sendmessagedraft" not in stage.emulator.calls
