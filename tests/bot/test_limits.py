"""Access lists and throttling, and the replies to refused requests."""

from __future__ import annotations

import asyncio
import re

import pytest

from bot.chat.question import Question
from bot.chat.throttling import MANY_ASK, STILL_ANSWERING, TOO_OFTEN, Throttle, Throttled
from bot.config import Settings
from bot.live_settings import LiveSettings
from bot.settings import LimitsSettings, TelegramSettings
from tests.support.chatting import ADMIN, Stage, final_reply, png, until


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def asked(update: int, person: int) -> Question:
    return Question(update=update, chat=person, topic=0, asker=person, message=update, received=0.0)


def throttle(limits: LimitsSettings, clock: Clock) -> Throttle:
    return Throttle(LiveSettings(Settings(limits=limits, telegram=TelegramSettings(admins=(ADMIN,)))), clock)


def refused(limits: Throttle, update: int, person: int) -> tuple[str, object]:
    """Ask a question that must be refused, and return the refusal's sentence and waiting time in seconds."""
    with pytest.raises(Throttled) as raised, limits.admitted(asked(update, person)):
        pass
    reason = raised.value.args[0]
    return reason.template, reason.values["seconds"]


def test_questions_within_a_minute() -> None:
    """A question over the limit is refused with the time until the oldest question counted is a minute old.

    Other users may still ask.
    """
    clock = Clock()
    limits = throttle(LimitsSettings(questions_per_minute=2), clock)
    for update in (1, 2):
        with limits.admitted(asked(update, 5)):
            clock.now += 10
    assert refused(limits, 3, 5) == (TOO_OFTEN, 40)
    with limits.admitted(asked(2, 5)):
        """An update that is handled again after a failure counts once."""
    with limits.admitted(asked(4, 6)):
        pass
    clock.now += 39.5
    assert refused(limits, 3, 5) == (TOO_OFTEN, 1)
    clock.now += 0.5
    with limits.admitted(asked(3, 5)):
        pass
    assert refused(limits, 7, 5) == (TOO_OFTEN, 10)


def test_answers_at_once() -> None:
    """The waiting time is the time that the oldest answer in flight is still expected to need.

    The estimate uses the average duration of an answer.
    """
    clock = Clock()
    limits = throttle(LimitsSettings(answers_per_person=1, answers_at_once=2), clock)
    for update in range(50):
        with limits.admitted(asked(update, update)):
            clock.now += 20
    with limits.admitted(asked(101, 5)):
        clock.now += 8
        assert refused(limits, 102, 5) == (STILL_ANSWERING, 12)
        with limits.admitted(asked(103, 6)):
            clock.now += 11.5
            assert refused(limits, 104, 8) == (MANY_ASK, 1)
            clock.now += 100
            assert refused(limits, 104, 8) == (MANY_ASK, 1)
            with limits.admitted(asked(105, ADMIN)):
                """Admins are not limited."""
        with limits.admitted(asked(104, 8)):
            pass


async def test_too_many_questions_are_refused(stage: Stage) -> None:
    """Too many questions are refused with the time to wait, in the user's language; the engine is not called."""
    async with stage.bot(limits={"questions_per_minute": 1}) as bot, stage.person(language="zh") as ada:
        await ada.asks(photo=png())
        assert re.search(r"请 (60|[1-5]?\d) 秒后再试", (await final_reply(ada, "再说一遍"))["text"])
        await final_reply(ada, "/help")
        assert len(bot.engine.prompts) == 1
        async with stage.person(ADMIN, "Root") as root:
            await root.asks(photo=png())
            await root.asks("And now?")


async def test_too_many_answers_in_flight_are_refused(stage: Stage) -> None:
    """When the limit on answers in flight is reached, the next question is refused with the time to wait."""
    go_on = asyncio.Event()
    async with (
        stage.bot(["Well, ", go_on, "done."], limits={"answers_at_once": 1}) as bot,
        stage.person() as ada,
        stage.person(1002, "Ben") as ben,
    ):
        await ada.sends(photo=png())
        await until(lambda: len(bot.engine.prompts) == 1)
        assert "Many people are asking" in (await final_reply(ben, photo=png(colour="red")))["text"]
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Well, done."
        await ben.asks(photo=png(colour="red"))


async def test_only_allowed_people_are_answered(stage: Stage) -> None:
    """A user missing from `limits.allowed` is refused once, is shown their user ID, and leaves no record.

    /privacy still works.
    """
    async with (
        stage.bot(limits={"allowed": [1001]}) as bot,
        stage.person() as ada,
        stage.person(1002, "Ben") as ben,
        stage.person(ADMIN, "Root") as root,
    ):
        await ada.asks(photo=png())
        await root.asks(photo=png())
        assert "your user ID is 1002" in (await final_reply(ben, "/start"))["text"]
        await ben.sends(photo=png())
        await stage.handled(bot)
        assert len(await ben.bot_messages()) == 1
        assert len(bot.engine.prompts) == 2
        assert await bot.ledger.people.get(1002) is None
        assert "/delete_my_data" in (await final_reply(ben, "/privacy"))["text"]


async def test_people_blocked_on_the_page_are_not_answered(stage: Stage) -> None:
    """A person blocked on the web page gets no answer and cannot vote until the block is lifted.

    The right to view and delete one's data remains.
    """
    async with stage.person() as ada, stage.bot() as bot:
        answer = await ada.asks(photo=png())
        await bot.ledger.blocks.add(1001, "web")
        assert "The operator has blocked you." in (await final_reply(ada, "Hello?"))["text"]
        assert await ada.toast(await ada.taps("👍", answer)) == "I'm not allowed to talk with you here."
        assert "/delete_my_data" in (await final_reply(ada, "/privacy"))["text"]
        assert (await bot.ledger.counts.totals())["votes"] == 0
        await bot.ledger.blocks.remove(1001)
        assert await ada.toast(await ada.taps("👍", answer)) != "I'm not allowed to talk with you here."
        assert (await bot.ledger.counts.totals())["votes"] == 1


async def test_blocked_people_are_not_answered(stage: Stage) -> None:
    """A blocked user can neither ask nor vote; a blocked group gets no answer at all."""
    async with stage.person() as ada, stage.person(1002, "Ben") as ben:
        async with stage.bot():
            answer = await ada.asks(photo=png())
        group = stage.emulator.add_group("Club", [1001, 1002]).id
        async with stage.bot(limits={"blocked": [1001, group]}) as bot:
            assert "The operator has blocked you." in (await final_reply(ada, "Hello?"))["text"]
            assert await ada.toast(await ada.taps("👍", answer)) == "I'm not allowed to talk with you here."
            await ben.sends("/start", chat=group)
            await ben.asks(photo=png())
            await stage.handled(bot)
            assert (await bot.ledger.counts.totals())["votes"] == 0
            assert await ben.bot_messages(group) == []
