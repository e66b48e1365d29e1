"""Ephemeral messages: in groups that the bot administers, only the person concerned sees refusals and apologies."""

from __future__ import annotations

from bot.chat.responder import apology
from bot.i18n import Translator
from inference.messages import EngineUnavailable
from tests.support.chatting import Stage, Step, final_reply, png, shows, until
from tests.support.person import Person

BOT = "@thumbtune_bot"
FIRST = "Send me a picture first."


def group_of(stage: Stage, person: Person, *, admin: bool = True) -> int:
    return stage.emulator.add_group("Friends", [person.id], admin=admin).id


async def test_an_apology_is_seen_by_one_person(stage: Stage) -> None:
    """A refusal is an ephemeral message to the person who asked; the chat and the ledger have no message to edit."""
    async with stage.bot() as bot, stage.person() as ada:
        group = group_of(stage, ada)
        await ada.sends(f"{BOT} What?", chat=group)
        await ada.sends(f"/status{BOT}", chat=group)
        await stage.handled(bot)
        seen = stage.emulator.world.chats[group].ephemeral
        assert {each["text"] for each in seen} == {FIRST, "Only admins can do that. /help shows what I can do for you."}
        assert {each["receiver_user"]["id"] for each in seen} == {ada.id}
        assert await ada.bot_messages(group) == []
        totals = await bot.ledger.counts.totals()
        assert totals["replies_doubtful"] == 0


async def test_a_refusal_is_remembered_and_everybody_sees_the_text(stage: Stage) -> None:
    """Where the bot is no administrator, Telegram refuses once, and each text becomes a normal reply."""
    async with stage.bot() as bot, stage.person() as ada:
        group = group_of(stage, ada, admin=False)
        for number in (1, 2):
            asked = await ada.sends(f"{BOT} What?", chat=group)
            await stage.handled(bot)
            last = (await ada.bot_messages(group))[-1]
            assert (last["text"], last["reply_to_message"]["message_id"]) == (FIRST, asked["message_id"])
            assert stage.emulator.calls["sendmessage"] == number + 1
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 0


async def test_a_server_without_ephemeral_messages_sends_normal_ones(stage: Stage) -> None:
    """A server that ignores the parameter sends a normal message, which is recorded as the reply."""
    stage.emulator.world.knows_ephemeral = False
    async with stage.bot() as bot, stage.person() as ada:
        group = group_of(stage, ada)
        asked = await ada.sends(f"{BOT} What?", chat=group)
        sent = await shows(ada, FIRST, group)
        await stage.handled(bot)
        (reply,) = await bot.ledger.replies.for_question(group, asked["message_id"])
        assert (reply.message, reply.final) == (sent["message_id"], True)
        assert stage.emulator.calls["sendmessage"] == 1


async def test_a_broken_call_is_followed_by_a_normal_message(stage: Stage) -> None:
    """If the connection breaks, the text is sent again for all to see, because it must arrive."""
    stage.emulator.faults.plan("reset_after", 1, methods=["sendMessage"])
    async with stage.bot() as bot, stage.person() as ada:
        group = group_of(stage, ada)
        await ada.sends(f"{BOT} What?", chat=group)
        await shows(ada, FIRST, group)
        await stage.handled(bot)
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 1


async def test_an_answer_that_has_begun_ends_in_the_open(stage: Stage) -> None:
    """A failure after the placeholder replaces it; in a private chat apologies are normal messages."""
    failing: list[Step] = [1.2, EngineUnavailable("down")]
    async with stage.bot(failing) as bot, stage.person() as ada:
        group = group_of(stage, ada)
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        sorry = apology(EngineUnavailable(), Translator.load().to("en"))
        await until(lambda: has_said(ada, group, sorry))
        await stage.handled(bot)
        assert len(await ada.bot_messages(group)) == 1
        assert (await final_reply(ada, "What?"))["text"] == FIRST
        assert stage.emulator.world.chats[group].ephemeral == []


async def has_said(person: Person, chat: int, text: str) -> bool:
    """Return whether the bot's last message in a chat has the text `text`."""
    return any(each["text"] == text for each in (await person.bot_messages(chat))[-1:])
