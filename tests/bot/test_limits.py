"""Who may talk with the bot and how much they may ask, and what everybody else is told."""

from __future__ import annotations

import asyncio
import re

import pytest

from bot.chat.in_flight import Asked
from bot.chat.throttling import MANY_ASK, STILL_ANSWERING, TOO_OFTEN, Limits, TooMuch
from bot.settings import LimitsSettings
from tests.support.chatting import ADMIN, Stage, png, told, until


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def asked(update: int, person: int) -> Asked:
    return Asked(update, person, 0, person, update, 0.0)


def refused(limits: Limits, update: int, person: int) -> tuple[str, object]:
    """The sentence that the question is refused with, and the seconds that it names."""
    with pytest.raises(TooMuch) as raised, limits.answering(asked(update, person)):
        pass
    return raised.value.sentence, raised.value.values["seconds"]


def test_questions_within_a_minute() -> None:
    """One more than allowed is refused with the time until the first is a minute old; others may ask meanwhile."""
    clock = Clock()
    limits = Limits(LimitsSettings(questions_per_minute=2), {ADMIN}, clock)
    for update in (1, 2):
        with limits.answering(asked(update, 5)):
            clock.now += 10
    assert refused(limits, 3, 5) == (TOO_OFTEN, 40)
    with limits.answering(asked(2, 5)):
        """Handled once more after a failure: it counts once."""
    with limits.answering(asked(4, 6)):
        pass
    clock.now += 39.5
    assert refused(limits, 3, 5) == (TOO_OFTEN, 1)
    clock.now += 0.5
    with limits.answering(asked(3, 5)):
        pass
    assert refused(limits, 7, 5) == (TOO_OFTEN, 10)


def test_answers_at_once() -> None:
    """The time to wait is what the oldest answer still takes, if it takes as long as answers usually do."""
    clock = Clock()
    limits = Limits(LimitsSettings(answers_per_person=1, answers_at_once=2), {ADMIN}, clock)
    for update in range(50):
        with limits.answering(asked(update, update)):
            clock.now += 20
    with limits.answering(asked(101, 5)):
        clock.now += 8
        assert refused(limits, 102, 5) == (STILL_ANSWERING, 12)
        with limits.answering(asked(103, 6)):
            clock.now += 11.5
            assert refused(limits, 104, 8) == (MANY_ASK, 1)
            clock.now += 100
            assert refused(limits, 104, 8) == (MANY_ASK, 1)
            with limits.answering(asked(105, ADMIN)):
                """Admins are not limited."""
        with limits.answering(asked(104, 8)):
            pass


async def test_too_many_questions_are_refused_kindly(stage: Stage) -> None:
    """Who asks too often is told how long to wait, in their language; what was refused asks the engine nothing."""
    async with stage.bot(limits={"questions_per_minute": 1}) as bot, stage.person(language="zh") as ada:
        await ada.asks(photo=png())
        assert re.search(r"请 (60|[1-5]?\d) 秒后再问", (await told(ada, "再说一遍"))["text"])
        await told(ada, "/help")
        assert len(bot.engine.prompts) == 1
        async with stage.person(ADMIN, "Root") as root:
            await root.asks(photo=png())
            await root.asks("And now?")


async def test_another_question_meanwhile_is_refused_kindly(stage: Stage) -> None:
    """While as many answers as may be are under way, the next who asks is told when to ask again."""
    go_on = asyncio.Event()
    async with (
        stage.bot(["Well, ", go_on, "done."], limits={"answers_at_once": 1}) as bot,
        stage.person() as ada,
        stage.person(1002, "Ben") as ben,
    ):
        await ada.sends(photo=png())
        await until(lambda: len(bot.engine.prompts) == 1)
        assert "Many people are asking me" in (await told(ben, photo=png(colour="red")))["text"]
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Well, done."
        await ben.asks(photo=png(colour="red"))


async def test_only_who_is_allowed_is_talked_with(stage: Stage) -> None:
    """A stranger hears once what to do, with their id; nothing of them is written down, and they keep their rights."""
    async with (
        stage.bot(limits={"allowed": [1001]}) as bot,
        stage.person() as ada,
        stage.person(1002, "Ben") as ben,
        stage.person(ADMIN, "Root") as root,
    ):
        await ada.asks(photo=png())
        await root.asks(photo=png())
        assert "your user id is 1002" in (await told(ben, "/start"))["text"]
        await ben.sends(photo=png())
        await stage.handled(bot)
        assert len(await ben.bot_messages()) == 1
        assert len(bot.engine.prompts) == 2
        assert await bot.ledger.people.get(1002) is None
        assert "/delete_my_data" in (await told(ben, "/privacy"))["text"]


async def test_who_is_blocked_is_not_talked_with(stage: Stage) -> None:
    """A blocked person can neither ask nor vote; a blocked group gets no answer at all."""
    async with stage.person() as ada, stage.person(1002, "Ben") as ben:
        async with stage.bot():
            answer = await ada.asks(photo=png())
        group = stage.emulator.add_group("Club", [1001, 1002]).id
        async with stage.bot(limits={"blocked": [1001, group]}) as bot:
            assert "I may not talk with you." in (await told(ada, "Hello?"))["text"]
            assert await ada.toast(await ada.taps("👍", answer)) == "I may not talk with you here."
            await ben.sends("/start", chat=group)
            await ben.asks(photo=png())
            await stage.handled(bot)
            assert (await bot.ledger.counts.totals())["votes"] == 0
            assert await ben.bot_messages(group) == []
