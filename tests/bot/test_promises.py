"""The guarantees in docs/promises.md for each kind of message if a connection breaks after a call succeeds."""

from __future__ import annotations

import asyncio

import pytest

from bot.telegram.reply import PENDING
from tests.support.chatting import ADMIN, Stage, final_reply, png, shows
from tests.support.person import UP, Message, Person, button

STOP = "⏹ Stop"
COMMANDS = ("/start", "/help", "/new", "/language", "/model", "/privacy", "/delete_my_data", "/retry", "/dance")
ADMINS = ("/status", "/schedule", "/models", "/retrain", "/retrain dry", "/cancel", "/promote run-1", "/stats")


def words(messages: list[Message]) -> list[str]:
    """Return the texts and captions of messages, except those that still show a placeholder."""
    said = [each.get("text") or each.get("caption") or "" for each in messages]
    return [text for text in said if not text.endswith("…")]


@pytest.mark.parametrize("method", ["sendMessage", "editMessageText"])
@pytest.mark.parametrize("command", [*COMMANDS, *ADMINS])
async def test_the_reply_to_a_command_is_shown_once(stage: Stage, command: str, method: str) -> None:
    """In a private chat, the reply to a command appears once even if the connection breaks after a call.

    A placeholder may appear twice.
    """
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        stage.emulator.faults.plan("reset_after", 1, methods=[method])
        await root.sends(command)
        await stage.handled(bot)
        assert len(words(await root.bot_messages())) == 1
        assert len(await root.bot_messages()) == 1 + (method == "sendMessage")


@pytest.mark.parametrize("method", ["sendMessage", "editMessageText"])
async def test_a_refusal_is_shown_once(stage: Stage, method: str) -> None:
    """A user without permission gets one refusal even if the connection breaks after a call."""
    async with stage.bot() as bot, stage.person() as ada:
        stage.emulator.faults.plan("reset_after", 1, methods=[method])
        await ada.sends("/retrain")
        await stage.handled(bot)
        assert words(await ada.bot_messages()) == ["Only admins can do that. /help shows what I can do for you."]


@pytest.mark.parametrize("method", ["sendMessage", "editMessageMedia"])
@pytest.mark.parametrize("group", [False, True])
async def test_a_chart_is_sent_once(stage: Stage, method: str, group: bool) -> None:
    """/stats shows one chart and no error message even if the connection breaks after a call."""
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        await root.asks(photo=png())
        chat = stage.emulator.add_group("Friends", [root.id]).id if group else None
        before = len(await root.bot_messages(chat))
        stage.emulator.faults.plan("reset_after", 1, methods=[method])
        await root.sends("/stats", chat=chat)
        await stage.handled(bot)
        said = (await root.bot_messages(chat))[before:]
        assert len([each for each in said if "photo" in each]) == 1
        assert words(said) == ["Last 30 days: 1 answers, 0 👍, 0 👎."]


@pytest.mark.parametrize("skip", range(3))
async def test_no_page_of_a_long_answer_is_duplicated(stage: Stage, skip: int) -> None:
    """Even if a connection breaks, each page of a long answer appears once, with the thumbs under the last."""
    text = "".join(f"Sentence number {number}. " for number in range(500))
    async with stage.bot([text[:6000], 0.2, text[6000:]]) as bot, stage.person() as ada:
        stage.emulator.faults.plan("reset_after", 1, methods=["sendMessage"], skip=skip)
        await ada.sends(photo=png())
        await stage.handled(bot)
        pages = words(await ada.bot_messages())
        assert len(pages) == 3
        assert " ".join(pages).split() == text.split()
        assert len([each for each in await ada.bot_messages() if button(each, UP)]) == 1


async def left_over(stage: Stage, ada: Person) -> tuple[Message, Message]:
    """Provoke a placeholder unknown to the ledger; return it and the placeholder that becomes the answer."""
    stage.emulator.faults.plan("reset_after", 1, methods=["sendMessage"])
    await ada.sends(photo=png())
    async with asyncio.timeout(20):
        while len(found := await ada.bot_messages()) < 2:
            await asyncio.sleep(0.02)
    first, second = found
    return first, second


@pytest.mark.parametrize("ended", [False, True])
async def test_a_stray_placeholder_is_deleted_when_it_is_tapped(stage: Stage, ended: bool) -> None:
    """A tap on a stray placeholder's ⏹ deletes the placeholder and stops the answer if it is not finished."""
    go_on = asyncio.Event()
    async with stage.bot(["Some", go_on, " words."]) as bot, stage.person() as ada:
        first, second = await left_over(stage, ada)
        await shows(ada, "Some")
        if ended:
            go_on.set()
            await ada.answer(rated=True)
        await ada.toast(await ada.taps(STOP, first))
        await stage.handled(bot)
        (answer,) = await ada.bot_messages()
        assert answer["message_id"] == second["message_id"]
        assert answer["text"] == ("Some words." if ended else "Some")


async def test_a_stray_placeholder_is_deleted_when_it_is_replied_to(stage: Stage) -> None:
    """A reply to a stray placeholder deletes the placeholder and is answered like any other question."""
    async with stage.bot("Answer.", "And another.") as bot, stage.person() as ada:
        first, _ = await left_over(stage, ada)
        await ada.answer(rated=True)
        await ada.sends("And?", reply_to=first["message_id"])
        await stage.handled(bot)
        assert [each["text"] for each in await ada.bot_messages()] == ["Answer.", "And another."]


async def test_a_commands_stray_placeholder_is_deleted_when_it_is_replied_to(stage: Stage) -> None:
    """A reply to a command's stray placeholder deletes the placeholder.

    The placeholder has no ⏹; the bot recognizes it by its text and by the absence of a record.
    """
    async with stage.bot() as bot, stage.person() as ada:
        stage.emulator.faults.plan("reset_after", 1, methods=["sendMessage"])
        await ada.sends("/model")
        await stage.handled(bot)
        first, second = await ada.bot_messages()
        assert first["text"] == PENDING.text
        await ada.sends("/help", reply_to=first["message_id"])
        await stage.handled(bot)
        assert next(each["message_id"] for each in await ada.bot_messages()) == second["message_id"]


async def test_the_placeholder_of_an_answer_stays(stage: Stage) -> None:
    """A tap on ⏹ under a placeholder that the ledger knows stops the answer and deletes nothing."""
    never = asyncio.Event()
    async with stage.bot(["Half", never]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await ada.toast(await ada.taps(STOP, await shows(ada, "Half")))
        await stage.handled(bot)
        assert [each["text"] for each in await ada.bot_messages()] == ["Half"]
        assert stage.emulator.counts(ada.id).deletes == 0


async def test_an_answer_in_a_group_may_be_duplicated(stage: Stage) -> None:
    """In a group, an answer is sent in one call; if the connection then breaks, the answer appears twice."""
    async with stage.bot("Answer.") as bot, stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        stage.emulator.faults.plan("reset_after", 1, methods=["sendMessage"])
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        await stage.handled(bot)
        assert [each["text"] for each in await ada.bot_messages(group)] == ["Answer.", "Answer."]
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 1


async def test_a_deleted_message_with_buttons_is_not_a_failure(stage: Stage) -> None:
    """A language choice takes effect even if the message with the buttons was deleted, and no admin is alerted."""
    async with stage.bot() as bot, stage.person() as ada:
        offered = await final_reply(ada, "/language")
        stage.emulator.faults.plan("refused", 1, methods=["editMessageText"], words="message to edit not found")
        await ada.toast(await ada.taps("中文", offered))
        await stage.handled(bot)
        assert (await bot.ledger.counts.totals())["updates_set_aside"] == 0
        person = await bot.ledger.people.get(ada.id)
        assert person is not None
        assert person.language == "zh"
