"""The typing status, and how calls share the overall rate."""

from __future__ import annotations

import asyncio
from typing import Any

from bot.telegram.client import DeliveryMiddleware, open_bot
from bot.telegram.methods import PartialEdit
from inference.messages import Delta
from tests.support.chatting import ScriptedEngine, Stage, png, settings, shows, until
from tests.support.person import UP, Person, button


async def test_the_bot_shows_typing_until_the_answer(stage: Stage) -> None:
    """The typing status follows the placeholder, and a failure to send it does not affect the answer."""
    middleware = asyncio.Event()
    stage.emulator.faults.plan("bad_gateway", 1, methods=["sendChatAction"])
    async with stage.bot(["So", middleware, "."], [0.5, "Next."]), stage.person() as ada:
        await ada.sends(photo=png())
        await shows(ada, "So")
        await until(lambda: stage.emulator.calls.get("sendchataction", 0) == 1)
        middleware.set()
        assert (await ada.answer(rated=True))["text"] == "So."
        since = stage.emulator.world.events.last
        await ada.asks("And?")
        assert stage.emulator.calls["sendchataction"] == 2
        async with asyncio.timeout(10):
            events = stage.emulator.world.events.follow(since, lambda event: event["kind"] == "action")
            assert (await anext(events))["action"] == "typing"


async def test_partial_edits_leave_capacity_for_messages(stage: Stage) -> None:
    """When the overall rate is nearly used up, partial edits are dropped and messages are still sent."""
    made = settings(stage.url, stage.emulator.token, {"calls_per_second": 12})
    middleware = DeliveryMiddleware(made.telegram)
    bot = open_bot(made.telegram, middleware)
    try:
        async with stage.person() as ada:
            message = await bot.send_message(ada.id, "0")
            taken = []
            for number in range(1, 30):
                edit: Any = PartialEdit(chat_id=ada.id, message_id=message.message_id, text=str(number))
                taken.append(bool(await bot(edit)))
            assert taken[0] and not taken[-1]
            assert middleware.counts["dropped"] > 0
            async with asyncio.timeout(1):
                await bot.send_message(ada.id, "In spite of it")
    finally:
        await bot.session.close()


async def test_many_answers_at_once_all_arrive(stage: Stage) -> None:
    """With Telegram's limits on, a dozen users get complete answers concurrently, and few calls are refused."""
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
