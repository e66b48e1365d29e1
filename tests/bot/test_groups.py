"""Groups: who is answered, about which picture, in which conversation and topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bot.telegram.errors import Unreachable
from tests.support.chatting import ScriptedEngine, Stage, png, until
from tests.support.person import Person

BOT = "@thumbtune_bot"


@asynccontextmanager
async def friends(stage: Stage, **what: object) -> AsyncIterator[tuple[Person, Person, int]]:
    """Yield Ada, Bob and the ID of their group, created with the options in `what`."""
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        yield ada, bob, stage.emulator.add_group("Friends", [ada.id, bob.id], **what).id  # type: ignore[arg-type]


async def test_a_reply_asks_about_another_persons_picture(stage: Stage) -> None:
    """A reply that mentions the bot, in any letter case, asks about the picture it replies to."""
    async with stage.bot() as bot, friends(stage) as (ada, bob, group):
        picture = await bob.sends(photo=png(), caption="Look!", chat=group)
        asked = await ada.sends("@Thumbtune_Bot what is it?", reply_to=picture["message_id"], chat=group)
        answer = await ada.answer(rated=True, chat=group)
        assert answer["reply_to_message"]["message_id"] == asked["message_id"]
        (turn,) = bot.engine.prompts[0].turns
        assert (turn.text, len(turn.pictures)) == ("what is it?", 1)
        assert (await bot.ledger.exchanges.get(1)).asker == ada.id


async def test_each_person_has_their_own_conversation(stage: Stage) -> None:
    """A reply to another user's answer begins a conversation with the same picture and no history."""
    async with stage.bot("A cat.", "Grey.", "Yes.", "No.") as bot, friends(stage) as (ada, bob, group):
        await ada.sends(photo=png(), caption=f"{BOT} a?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        await ada.sends("b?", reply_to=answer["message_id"], chat=group)
        latest = await ada.answer(rated=True, chat=group)
        assert bot.engine.heard() == ["a?", "A cat.", "b?"]
        await bob.sends("c?", reply_to=latest["message_id"], chat=group)
        await bob.answer(rated=True, chat=group)
        assert bot.engine.heard() == ["c?"]
        assert bot.engine.prompts[-1].turns[0].pictures == bot.engine.prompts[0].turns[0].pictures
        await bob.sends(f"{BOT} d?", chat=group)
        await bob.answer(rated=True, chat=group)
        assert bot.engine.heard() == ["c?", "Yes.", "d?"]


async def test_a_group_can_share_one_conversation(stage: Stage) -> None:
    """With `chat.group_sessions = "shared"`, members share the history, even while an answer is in flight."""
    gate = asyncio.Event()
    async with (
        stage.bot(["A cat", gate, "."], "Grey.", "Again.", chat={"group_sessions": "shared"}) as bot,
        friends(stage) as (ada, bob, group),
    ):
        await ada.sends(photo=png(), caption=f"{BOT} a?", chat=group)
        await until(lambda: bool(bot.engine.prompts))
        await bob.sends(f"{BOT} b?", chat=group)
        await until(lambda: bot.inbox.pending == 2)
        gate.set()
        await stage.handled(bot)
        assert bot.engine.heard() == ["a?", "A cat.", "b?"]
        assert bot.engine.prompts[0].chat == bot.engine.prompts[1].chat
        await ada.sends("/retry", chat=group)
        await stage.handled(bot)
        assert bot.engine.heard() == ["a?"], "each gets another answer to a question of their own"
        assert (await bot.ledger.exchanges.get(3)).replaces == 1
        assert (await bot.ledger.counts.totals())["users"] == 2
        await bob.sends("/new", chat=group)
        await stage.handled(bot)
        await ada.sends(f"{BOT} c?", chat=group)
        await stage.handled(bot)
        assert len(bot.engine.prompts) == 3, "no picture since /new"
        await bot.ledger.personal_data.erase(ada.id)
        assert (await bot.ledger.counts.totals())["exchanges"] == 0, "all of it was about her picture"


async def test_topics_have_their_own_conversations(stage: Stage) -> None:
    """Each topic has its own conversation and answers.

    Messages in a topic that do not address the bot are ignored.
    """
    async with stage.bot() as bot, friends(stage, privacy=False) as (ada, bob, group):
        cats = await ada.opens_topic(group, "Cats")
        me = stage.emulator.world.bot
        dogs = stage.emulator.world.add_topic(stage.emulator.world.chats[group], "Dogs", me)
        await ada.sends(photo=png(), caption=f"{BOT} a?", chat=group, topic=cats)
        answer = await ada.answer(rated=True, chat=group)
        assert answer["message_thread_id"] == cats
        await bob.sends("How nice", chat=group, topic=dogs)
        await ada.sends(f"{BOT} b?", chat=group, topic=dogs)
        refused = await ada.answer(rated=False, chat=group, quiet=0.2)
        assert refused["message_thread_id"] == dogs
        assert "picture first" in refused["text"]
        await ada.sends(f"{BOT} c?", chat=group, topic=cats)
        await ada.answer(rated=True, chat=group)
        assert bot.engine.heard() == ["a?", "Answer 1", "c?"]
        await ada.sends("/retry@thumbtune_bot", chat=group, topic=cats)
        assert (await ada.answer(rated=True, chat=group))["message_thread_id"] == cats
        with pytest.raises(Unreachable, match="message thread not found"):
            await bot.bot.send_message(group, "Lost", message_thread_id=cats + dogs)
        with pytest.raises(Unreachable, match="message thread not found"):
            await bot.bot.send_chat_action(group, "typing", message_thread_id=1)


async def test_an_edit_can_address_the_bot(stage: Stage) -> None:
    """A message is answered as soon as an edit mentions the bot, and again after each further edit."""
    async with stage.bot(engine=ScriptedEngine()) as bot, friends(stage, privacy=False) as (ada, _, group):
        question = await ada.sends(photo=png(), caption="What?", chat=group)
        await stage.handled(bot)
        await ada.edits(question, f"{BOT} What?")
        await ada.answer(rated=True, chat=group)
        await ada.edits(question, "What else?")
        await until(lambda: len(bot.engine.prompts) == 2)
        await stage.handled(bot)
        assert [prompt.turns[-1].text for prompt in bot.engine.prompts] == ["What?", "What else?"]
        assert [message["text"] for message in await ada.bot_messages(group)] == ["Answer 2"]


async def test_commands_for_other_bots_are_ignored(stage: Stage) -> None:
    """In a group, the bot ignores commands for other bots, and unknown commands unless they name this bot."""
    async with stage.bot() as bot, friends(stage, privacy=False) as (ada, _, group):
        for command in ("/help@other_bot", "/dance", "/stop@other_bot"):
            await ada.sends(command, chat=group)
        await stage.handled(bot)
        assert await ada.bot_messages(group) == []
        await ada.sends("/help@thumbtune_bot", chat=group)
        assert "privacy mode" in (await ada.answer(rated=False, chat=group, quiet=0.2))["text"]
        await ada.sends("/dance@Thumbtune_Bot tango", chat=group)
        assert "don't know that command" in (await ada.answer(rated=False, chat=group, quiet=0.2))["text"]


async def test_messages_to_others_leave_no_trace(stage: Stage) -> None:
    """Texts, pictures, edits, reactions and commands for others leave no row or commit in the ledger.

    An album leaves its update IDs, because only one of its pictures has the caption, but no names.
    """
    async with stage.bot("A cat.") as bot, friends(stage, privacy=False, admin=True) as (ada, bob, group):
        before = await bot.ledger._writer.do(lambda database: database.conn.total_changes)
        said = await ada.sends("Good morning!", chat=group)
        await ada.edits(said, "Good evening!")
        await bob.sends(photo=png(), caption="Look!", chat=group)
        await bob.sends("/help@other_bot", chat=group)
        await bob.reacts(said, "👍")
        await stage.handled(bot)
        assert await bot.ledger._writer.do(lambda database: database.conn.total_changes) == before
        await bob.sends(album=[png(), png(colour="red")], chat=group)
        await stage.handled(bot)
        for person in (ada, bob):
            assert await bot.ledger.people.get(person.id) is None
        assert await bot.ledger.people.chat(group) is None
        await ada.sends(photo=png(), caption=f"{BOT} what is it?", chat=group)
        await ada.answer(rated=True, chat=group)
        assert [await bot.ledger.people.get(each.id) is not None for each in (ada, bob)] == [True, False]


async def test_an_edit_of_an_answered_question_is_handled(stage: Stage) -> None:
    """An edit of an answered question is handled even if it removes the mention of the bot."""
    async with stage.bot("A cat.", "Grey.") as bot, friends(stage, privacy=False) as (ada, _, group):
        asked = await ada.sends(photo=png(), caption=f"{BOT} what?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        await ada.edits(asked, "which colour?")
        await until(lambda: len(bot.engine.prompts) == 2)
        await stage.handled(bot)
        (now,) = [each for each in await ada.bot_messages(group) if each["message_id"] == answer["message_id"]]
        assert now["text"] == "Grey."
