"""/broadcast reaches each user once despite interruptions and reports the outcome to the admin."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest
from yarl import URL

from bot.handlers import broadcast
from storage.chat_records import Chat
from storage.chat_records import Person as Known
from storage.errors import NotSaved
from storage.ledger import Ledger
from storage.state_machines import RecipientState
from tests.support.chatting import (
    ADMIN,
    Notebook,
    RunningBot,
    ScriptedEngine,
    Stage,
    final_reply,
    settings,
    shows,
    until,
)
from tests.support.killing import killed_while
from tests.support.ledgers import newest_update
from tests.support.person import Message, Person

NEWS = "I am back.\nAsk me!"
PEOPLE = range(5001, 5025)


async def acquainted(stage: Stage, people: Sequence[int]) -> None:
    """Make each user in `people` known to the bot, as if the user had pressed Start."""
    async with Ledger.open(stage.directory) as ledger:
        for person in people:
            stage.emulator.add_person(person, f"P{person}").started = True
            await ledger.people.save(Known(person, f"P{person}"), Chat(person))


def news(stage: Stage, person: int) -> int:
    """Return how many times `person` received the broadcast."""
    return [message["text"] for message in stage.emulator.world.chats[person].messages.values()].count(NEWS)


async def report(root: Person, chat: int | None = None) -> Message:
    """Wait for the broadcast's report to the admin and return it."""
    async with root.time_limit(60, "the report of a broadcast"):
        while True:
            messages = await root.bot_messages(chat)
            if messages and messages[-1]["text"].startswith("Sent to"):
                return messages[-1]
            await asyncio.sleep(0.02)


async def test_a_broadcast_reaches_everyone_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcast reaches every private chat once, even after a short flood-control wait.

    Users who blocked the bot are counted as unreachable, and only admins can broadcast.
    """
    monkeypatch.setattr(broadcast, "PROGRESS_SECONDS", 0.0)
    async with (
        stage.bot() as bot,
        stage.person(ADMIN, "Root") as root,
        stage.person() as ada,
        stage.person(1002, "Ben") as ben,
        stage.person(1003, "Cem") as cem,
        stage.person(1004, "Dan") as dan,
    ):
        for each in (ada, ben, cem, dan):
            await final_reply(each, "/start")
        await ben.blocks()
        stage.emulator.faults.plan("flood", methods=["sendMessage"], chat=cem.id)
        stage.emulator.faults.plan("flood", methods=["sendMessage"], chat=dan.id, seconds=5000)
        assert "Only admins" in (await final_reply(ada, f"/broadcast {NEWS}"))["text"]
        assert "Recipients: 4" in (await final_reply(root, "/broadcast"))["text"]
        await root.sends(f"/broadcast {NEWS}")
        sent = await shows(root, "Sent to 2 of 4.\nNo longer reachable: 1.\nFailed: 1.")
        assert "reply_markup" not in sent
        assert [news(stage, each.id) for each in (ada, ben, cem, dan)] == [1, 0, 1, 0]
        assert len(bot.engine.prompts) == 0


async def test_a_broadcast_survives_being_killed(stage: Stage) -> None:
    """A broadcast interrupted by repeated `kill -9` continues with the remaining recipients.

    No user gets it twice, and the report names the recipients whose outcome is unknown.
    """
    kills = 3
    await acquainted(stage, PEOPLE)
    stage.emulator.faults.plan("delay", 999, methods=["sendMessage"], seconds=0.1)
    async with Person(stage.url, ADMIN, "Root") as root:
        reports = []

        async def talk(person: Person) -> None:
            await person.sends(f"/broadcast {NEWS}")
            reports.append((await report(person))["text"])

        readers = [Person(stage.url, person) for person in PEOPLE]
        await killed_while(stage, [root], talk, kills=kills, seed=3, told=readers)
    async with Ledger.open(stage.directory) as ledger:
        update = newest_update(ledger)
        assert (await ledger.inbox.get(update)).attempts == kills + 1, "killed in the middle each time"
    (said,) = reports
    doubtful = {int(found) for found in re.findall(r"P\d+ \((\d+)\)", said)}
    assert len(doubtful) <= kills
    assert said.startswith(f"Sent to {len(PEOPLE) - len(doubtful)} of {len(PEOPLE)}.")
    assert all(news(stage, person) == 1 for person in PEOPLE if person not in doubtful)
    assert all(news(stage, person) <= 1 for person in doubtful)


async def test_a_stopped_broadcast_leaves_no_doubt(stage: Stage) -> None:
    """When the bot stops during a broadcast, the message in flight still arrives.

    The next process continues with the remaining recipients.
    """
    await acquainted(stage, PEOPLE[:4])
    stage.emulator.faults.plan("delay", methods=["sendMessage"], chat=PEOPLE[1], seconds=0.3)
    async with stage.person(ADMIN, "Root") as root:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        first.start()
        await root.sends(f"/broadcast {NEWS}")
        await until(lambda: not stage.emulator.faults.planned)
        await first.stop(grace=0)
        assert [news(stage, person) for person in PEOPLE[:4]] == [1, 1, 0, 0]
        async with stage.bot():
            assert (await report(root))["text"].splitlines() == ["Sent to 4 of 4."]
        assert [news(stage, person) for person in PEOPLE[:4]] == [1] * 4
        assert len(await root.bot_messages()) == 1


async def test_a_message_without_a_record_is_not_sent_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcast message that was sent but not recorded before the process ended is not sent again.

    The report names the recipient as uncertain.
    """
    reached = asyncio.Event()

    async def never(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(broadcast, "STOPPING_SECONDS", 0.0)
    await acquainted(stage, PEOPLE[:3])
    async with stage.person(ADMIN, "Root") as root:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        monkeypatch.setattr(first.ledger.broadcasts, "set_recipient", never)
        first.start()
        await root.sends(f"/broadcast {NEWS}")
        await reached.wait()
        await first.stop(grace=0)
        async with stage.bot():
            first_line, second_line = (await report(root))["text"].splitlines()
    assert first_line == "Sent to 2 of 3."
    assert second_line.startswith(f"Interrupted while sending: 1 (P{PEOPLE[0]} ({PEOPLE[0]})). ")
    assert [news(stage, person) for person in PEOPLE[:3]] == [1] * 3


async def test_a_broadcast_waits_for_the_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an outcome cannot be recorded, a broadcast sends nothing more.

    Every outcome is known at the end.
    """
    monkeypatch.setattr(broadcast, "DISK_SECONDS", 0.02)
    await acquainted(stage, PEOPLE[:3])
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        note = bot.ledger.broadcasts.set_recipient
        refused: list[int] = []

        async def unreliable(update: int, chat: int, state: RecipientState) -> None:
            if len(refused) < 3:
                refused.append(sum(news(stage, person) for person in PEOPLE[:3]))
                raise NotSaved("the disk is full")
            await note(update, chat, state)

        monkeypatch.setattr(bot.ledger.broadcasts, "set_recipient", unreliable)
        await root.sends(f"/broadcast {NEWS}")
        assert (await report(root))["text"].splitlines() == ["Sent to 3 of 3."]
    assert refused == [1, 1, 1]
    assert [news(stage, person) for person in PEOPLE[:3]] == [1] * 3


async def test_a_doubtful_message_is_not_sent_again(stage: Stage) -> None:
    """A message interrupted by a broken connection is not sent again, and the report names its recipient."""
    await acquainted(stage, PEOPLE[:3])
    for kind, person in (("reset_after", PEOPLE[0]), ("reset_before", PEOPLE[1])):
        stage.emulator.faults.plan(kind, methods=["sendMessage"], chat=person)
    async with stage.bot(), stage.person(ADMIN, "Root") as root:
        await root.sends(f"/broadcast {NEWS}")
        first, second = (await report(root))["text"].splitlines()
    assert first == "Sent to 1 of 3."
    names = f"P{PEOPLE[0]} ({PEOPLE[0]}), P{PEOPLE[1]} ({PEOPLE[1]})"
    assert second.startswith(f"Interrupted while sending: 2 ({names}). ")
    assert [news(stage, person) for person in PEOPLE[:3]] == [1, 0, 1]


async def test_a_broadcast_can_be_cancelled(stage: Stage) -> None:
    """Admins can cancel a broadcast with the button under its progress message; the other users get nothing."""
    first, *others = PEOPLE[:4]
    await acquainted(stage, PEOPLE[:4])
    stage.emulator.faults.plan("flood", 999, methods=["sendMessage"], chat=first, seconds=1)
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        group = stage.emulator.add_group("Friends", [root.id, ada.id]).id
        await root.sends(f"/broadcast@thumbtune_bot {NEWS}", chat=group)
        progress = await shows(root, "Sending… 0 of 4", group)
        await until(lambda: stage.emulator.faults.struck > 0)
        button = progress["reply_markup"]["inline_keyboard"][0][0]["callback_data"]
        assert "Only admins" in await ada.toast(await ada.presses(button, progress))
        assert await root.toast(await root.taps("Cancel", progress)) == "Stopped. Recipients who won't get it: 3."
        assert await root.toast(await root.presses(button, progress)) == "It has already been sent to everyone."
        stage.emulator.faults.clear()
        assert (await report(root, group))["text"].splitlines()[1] == "Cancelled before sending: 3."
        await bot.settled()
    assert [news(stage, person) for person in (first, *others)] == [1, 0, 0, 0]


async def test_a_broadcast_waits_while_telegram_is_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Telegram is unreachable, a broadcast waits; it then resumes with the same recipient.

    No recipient is skipped.
    """
    monkeypatch.setattr("bot.updates.inbox_processor.PAUSES", (0.02,))
    monkeypatch.setattr("bot.telegram.client.MAX_RETRY_SECONDS", 0.0)
    await acquainted(stage, PEOPLE[:3])
    stage.emulator.faults.plan("flood", methods=["sendMessage"], chat=PEOPLE[1], seconds=1)

    async def put_back() -> bool:
        return (await bot.ledger.broadcasts.recipients(update)).get(PEOPLE[1]) is RecipientState.DUE

    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        await root.sends(f"/broadcast {NEWS}")
        await until(lambda: not stage.emulator.faults.planned)
        update = newest_update(bot.ledger)
        await stage.emulator.stop()
        await until(put_back)
        await stage.emulator.start(port=URL(stage.url).port or 0)
        assert (await report(root))["text"].startswith("Sent to 3 of 3.")
    assert [news(stage, person) for person in PEOPLE[:3]] == [1] * 3
