"""Groups under Telegram's limit of 20 messages a minute: every question is answered, every vote shown.

Flood control is on in the emulator. The emulator and the bot use shortened minutes, so that the loads
fit into a test; `benchmarks.group_chat` runs the loads at full length.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bot.telegram import rate_limit, rate_limit_notices, sliding_window
from tests.support.chatting import RunningBot, Stage, png, shows, until
from tests.support.person import DOWN, UP, Message, Person, button

QUICKER = 20
LIMITED = {"group_calls_per_minute": 20}
BETTER = "✍ Suggest a better answer"


@pytest.fixture
def quick_minutes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten flood control's minute to 3 seconds, in both the emulator and the bot."""
    stage.emulator.flood.on = True
    stage.emulator.flood.clock = lambda: time.monotonic() * QUICKER
    monkeypatch.setattr(rate_limit, "GROUP_SECONDS", 60 / QUICKER)
    # A busy machine delays calls by as much as it would in a full minute, so the margin is shortened less.
    monkeypatch.setattr(rate_limit, "GROUP_MARGIN", 0.5)
    monkeypatch.setattr(sliding_window, "AGED_SECONDS", 45 / QUICKER)
    monkeypatch.setattr(rate_limit_notices, "DELAY_SECONDS", 3 / QUICKER)
    monkeypatch.setattr(rate_limit_notices, "POLL_SECONDS", 0.5 / QUICKER)


def answers(stage: Stage, group: int) -> list[Message]:
    """Return the group's answers, recognized by their rating buttons."""
    return [each for each in stage.emulator.world.chats[group].messages.values() if button(each, UP)]


@asynccontextmanager
async def friends(stage: Stage) -> AsyncIterator[tuple[RunningBot, tuple[Person, Person, Person], int, Message]]:
    """Yield a rate-limited bot, three group members, the group's ID and its first answer, about a picture."""
    async with (
        stage.bot(telegram=LIMITED) as bot,
        stage.person(1001) as ada,
        stage.person(1002, "Bob") as bob,
        stage.person(1003, "Cyd") as cyd,
    ):
        group = stage.emulator.add_group("Friends", [1001, 1002, 1003]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        yield bot, (ada, bob, cyd), group, await ada.answer(rated=True, chat=group)


async def test_a_quick_answer_takes_one_call(stage: Stage) -> None:
    """Nine quick answers to three users take nine messages and no edits, refused calls or notices."""
    stage.emulator.flood.on = True
    async with friends(stage) as (bot, (ada, bob, cyd), group, first):
        for number in range(8):
            person = (ada, bob, cyd)[number % 3]
            await person.sends(f"question {number}", reply_to=first["message_id"], chat=group)
        await until(lambda: len(answers(stage, group)) == 9)
        await stage.handled(bot)
        counts = stage.emulator.counts(group)
        assert (counts.sends, counts.edits) == (9, 0)
        assert stage.emulator.flood.refusals == 0


async def test_a_slow_answer_has_a_placeholder(stage: Stage) -> None:
    """An answer that takes more than a second begins as a placeholder with a ⏹ button, and grows."""
    first, last = asyncio.Event(), asyncio.Event()
    async with stage.bot([first, "Some", last, " words."]), stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        assert button(await shows(ada, "Looking at your picture…", group), "⏹ Stop")
        first.set()
        await shows(ada, "Some", group)
        last.set()
        assert (await ada.answer(rated=True, chat=group))["text"] == "Some words."
        assert stage.emulator.counts(group).sends == 1


@pytest.mark.usefixtures("quick_minutes")
async def test_more_questions_than_telegram_takes(stage: Stage) -> None:
    """Sixty questions a minute are all answered; no call is refused, and each user gets a single notice.

    Other chats are not delayed.
    """
    people = {1001: "Ada", 1002: "Bob", 1003: "Cyd"}
    async with stage.bot(telegram=LIMITED) as bot, stage.person(1009, "Eve") as eve:
        for person, name in people.items():
            stage.emulator.add_person(person, name)
        group = stage.emulator.add_group("Friends", list(people)).id
        ada = Person(stage.url, 1001, "Ada")
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        first = await ada.answer(rated=True, chat=group)
        for number in range(60):
            stage.emulator.people.writes(1001 + number % 3, f"q{number}", chat=group, reply_to=first["message_id"])
            await asyncio.sleep(1 / QUICKER)
        assert len(answers(stage, group)) < 61, "the load has to be more than the group takes"
        assert (await eve.asks(photo=png()))["text"]
        assert len(answers(stage, group)) < 61, "Eve has not waited for the group"
        await until(lambda: len(answers(stage, group)) == 61, 60)
        await stage.handled(bot)
        asked = [each["reply_to_message"]["message_id"] for each in answers(stage, group)]
        assert len(set(asked)) == 61
        assert stage.emulator.flood.refusals == 0
        mentioned = Counter(
            entity["user"]["id"]
            for message in stage.emulator.world.chats[group].messages.values()
            for entity in message.get("entities", ())
            if entity["type"] == "text_mention"
        )
        assert mentioned == dict.fromkeys(people, 1)
        assert len(await eve.bot_messages()) == 1
        await ada.close()


@pytest.mark.usefixtures("quick_minutes")
async def test_every_vote_is_shown(stage: Stage) -> None:
    """Votes that arrive faster than the group's limit allows are shown together, and none is left out.

    A 👎 shows the button for a correction, and the next answer does not wait behind the votes.
    """
    async with friends(stage) as (bot, (ada, bob, cyd), group, first):
        for number in range(11):
            await ada.sends(f"q{number}", reply_to=first["message_id"], chat=group)
        await until(lambda: len(answers(stage, group)) == 12)
        for message in answers(stage, group):
            for person, thumb in ((ada, UP), (bob, UP), (cyd, DOWN)):
                await person.toast(await person.taps(thumb, message))
        await ada.sends("And one more?", reply_to=first["message_id"], chat=group)
        await until(lambda: len(answers(stage, group)) == 13)

        def shown() -> bool:
            voted = answers(stage, group)[:12]
            return all(button(each, f"{UP} 2") and button(each, f"{DOWN} 1") and button(each, BETTER) for each in voted)

        await until(shown, 60)
        await stage.handled(bot)
        assert stage.emulator.flood.refusals == 0


async def test_unshown_votes_are_shown_by_the_next_process(stage: Stage) -> None:
    """A vote not yet shown when the bot stops is shown by the next process."""
    async with stage.person(1001) as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        async with stage.bot(telegram={"group_calls_per_minute": 1}) as bot:
            await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
            answer = await ada.answer(rated=True, chat=group)
            await ada.toast(await ada.taps(UP, answer))
            await stage.handled(bot)
        assert button(answers(stage, group)[0], f"{UP} 1") is None
        async with stage.bot() as bot:
            await bot.buttons.update_recent(bot.translator)
            await until(lambda: button(answers(stage, group)[0], f"{UP} 1") is not None)


async def test_a_group_is_silent_after_a_refusal(stage: Stage) -> None:
    """After a refusal by flood control, the bot sends nothing until the stated wait is over; then it answers."""
    stage.emulator.faults.plan("flood", 1, methods=["sendMessage"], seconds=1)
    async with stage.bot(telegram=LIMITED) as bot, stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        await ada.answer(rated=True, chat=group)
        await stage.handled(bot)
        assert stage.emulator.calls["sendmessage"] == 2
