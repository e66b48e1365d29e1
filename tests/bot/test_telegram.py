"""Refusals by Telegram: a bot blocked by a user or muted in a group, a migrated group, refused markup."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from bot.telegram import streaming
from bot.telegram.client import DeliveryMiddleware, open_bot
from inference.serving.engine_launch import free_port
from telegram_emulator import Emulator
from tests.support.chatting import RunningBot, Stage, png, settings, shows, until
from tests.support.ledgers import newest_update
from tests.support.person import UP, button

BOT = "@thumbtune_bot"


async def why_dropped(bot: RunningBot) -> str:
    """Check that the newest update was dropped after a single attempt, and return the reason."""
    await bot.settled()
    stored = await bot.ledger.inbox.get(newest_update(bot.ledger))
    assert (stored.state, stored.attempts, stored.payload) == ("done", 1, "")
    return stored.error


async def test_that_telegram_cannot_be_reached_is_said_once() -> None:
    """The first failed attempt to connect is a warning with the address, and so is the end of the outage.

    The call goes on trying and succeeds.
    """
    emulator, port = Emulator(), free_port()
    made = settings(f"http://127.0.0.1:{port}", emulator.token, {}).telegram
    middleware = DeliveryMiddleware(made)
    bot = open_bot(made, middleware)
    try:
        with capture_logs() as logs:
            calls = [asyncio.create_task(bot.delete_webhook()) for _ in range(2)]
            await until(lambda: middleware.counts["repeats"] > 1)
            assert [(each["log_level"], each["address"]) for each in logs] == [("warning", made.api_base)]
            assert "cannot be reached; the bot keeps trying" in logs[0]["event"]
            await emulator.start(port=port)
            assert await asyncio.gather(*calls) == [True, True]
            assert [each["event"] for each in logs[1:]] == ["Telegram can be reached again"]
    finally:
        await bot.session.close()
        await emulator.stop()


async def test_a_user_who_blocks_the_bot_costs_one_call(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a user blocks the bot, one typing status is refused; nothing else is sent, and the reason is recorded."""
    monkeypatch.setattr(streaming, "TYPING_SECONDS", 0.2)
    go_on = asyncio.Event()
    async with stage.bot([go_on, "An answer."]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await until(lambda: stage.emulator.calls.get("sendchataction", 0) > 1)
        stage.emulator.people.blocks(ada.id, blocked=True)
        before = dict(stage.emulator.calls)
        await until(lambda: stage.emulator.calls["sendchataction"] > before["sendchataction"])
        await asyncio.sleep(0.5)
        go_on.set()
        assert "blocked" in await why_dropped(bot)
        calls = stage.emulator.calls
        assert sum(calls[name] - before.get(name, 0) for name in calls if name != "getupdates") == 1


@pytest.mark.parametrize(
    "words",
    ["not enough rights to send text messages to the chat", "CHAT_WRITE_FORBIDDEN", "TOPIC_CLOSED"],
)
async def test_a_group_in_which_the_bot_may_not_write(stage: Stage, words: str) -> None:
    """In a group where the bot may not write, a question ends with one refused call; the reason is recorded.

    No admin is alerted.
    """
    async with stage.bot() as bot, stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        stage.emulator.faults.plan("refused", 99, methods=["sendMessage"], chat=group, words=words)
        await ada.sends(photo=png(), caption=f"{BOT} what is it?", chat=group)
        await stage.handled(bot)
        assert words in await why_dropped(bot)
        assert stage.emulator.calls["sendmessage"] == 1


async def test_a_group_that_has_become_a_supergroup_gets_its_answer(stage: Stage) -> None:
    """If a group becomes a supergroup while an answer is in flight, the answer goes to the supergroup."""
    async with stage.bot("An answer.") as bot, stage.person() as ada:
        old = stage.emulator.add_group("Friends", [ada.id], kind="group").id
        new = stage.emulator.add_group("Friends", [ada.id]).id
        stage.emulator.faults.plan(
            "refused", 99, chat=old, words="group chat was upgraded to a supergroup chat", moved_to=new
        )
        await ada.sends(photo=png(), caption=f"{BOT} what is it?", chat=old)
        await stage.handled(bot)
        assert [message["text"] for message in await ada.bot_messages(new)] == ["An answer."]
        assert (await bot.ledger.counts.totals())["updates_set_aside"] == 0


async def test_refused_markup_is_left_out(stage: Stage) -> None:
    """If Telegram refuses an answer's markup, the plain text arrives once, as an edit or a new message."""
    words = "entity beginning at UTF-16 offset 0 ends in a middle of a UTF-16 symbol at byte offset 3"
    go_on = asyncio.Event()
    async with stage.bot([go_on, "**Bold** words."], "**More** words.") as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await shows(ada, "Looking at your picture…")
        stage.emulator.faults.plan("refused", 2, methods=["editMessageText"], words=words)
        go_on.set()
        answer = await ada.answer(rated=True)
        assert answer["text"] == "Bold words."
        assert "entities" not in answer
        group = stage.emulator.add_group("Friends", [ada.id]).id
        stage.emulator.faults.plan("refused", 1, methods=["sendMessage"], words=words)
        await ada.sends(photo=png(), caption=f"{BOT} More?", chat=group)
        await stage.handled(bot)
        (answer,) = await ada.bot_messages(group)
        assert answer["text"] == "More words."
        assert "entities" not in answer
        assert button(answer, UP)
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 0
