"""Topics in private chats: each new picture opens one, and its conversation stays there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.handlers.picture_topics import ASK_THERE
from tests.support.chatting import Notebook, RunningBot, ScriptedEngine, Stage, final_reply, png, settings, until
from tests.support.person import Message, Person

ON: dict[str, Any] = {"picture_threads": True}


def topics(stage: Stage, person: Person) -> dict[int, str]:
    """Return the names of the topics in a person's chat, by number."""
    chat = stage.emulator.world.chats[person.id]
    return {number: chat.messages[number]["forum_topic_created"]["name"] for number in sorted(chat.topics)}


async def answers(person: Person) -> list[Message]:
    """Return the bot's messages that have a text."""
    return [each for each in await person.bot_messages() if "text" in each]


async def test_each_picture_has_a_topic_and_keeps_its_conversation(stage: Stage) -> None:
    """A picture opens a topic named by its question; questions there are about it, whatever came later elsewhere."""
    async with stage.bot("A cat.", "A dog.", "Grey.", chat=ON) as bot, stage.person() as ada:
        first = await ada.asks(photo=png(), caption="Which\nanimal?")
        second = await ada.asks(photo=png(colour="red"), caption="And " + "this " * 40)
        names = topics(stage, ada)
        assert list(names) == [first["message_thread_id"], second["message_thread_id"]]
        assert list(names.values()) == ["Which animal?", ("And " + "this " * 40)[:128]]
        assert (await final_reply(ada, "Which?"))["text"] == ASK_THERE
        await ada.asks("Which colour?", topic=first["message_thread_id"])
        assert bot.engine.heard() == ["Which\nanimal?", "A cat.", "Which colour?"]
        assert bot.engine.prompts[2].turns[0].pictures == bot.engine.prompts[0].turns[0].pictures
        await ada.sends("/new", topic=second["message_thread_id"])
        await stage.handled(bot)
        assert len(await answers(ada)) == 5
        assert (await answers(ada))[-1]["message_thread_id"] == second["message_thread_id"]
        again = await ada.taps("🔄", first)
        await ada.toast(again)
        await stage.handled(bot)
        assert (await answers(ada))[-1]["message_thread_id"] == first["message_thread_id"]


async def test_a_picture_in_a_topic_of_the_user_stays_there(stage: Stage) -> None:
    """A picture that is sent to a topic belongs to the topic; an edited question keeps its topic."""
    async with stage.bot("One.", "Two.", "Three.", chat=ON) as bot, stage.person() as ada:
        topic = await ada.opens_topic(ada.id, "Mine")
        answer = await ada.asks(photo=png(), caption="What?", topic=topic)
        assert answer["message_thread_id"] == topic
        asked = await ada.sends(photo=png(), caption="Where?")
        own = await ada.answer(rated=True)
        assert len(topics(stage, ada)) == 2
        await ada.edits(asked, "Where exactly?")
        await until(lambda: last_is(ada, "Three."))
        await stage.handled(bot)
        last = (await answers(ada))[-1]
        assert (last["message_id"], last["message_thread_id"]) == (own["message_id"], own["message_thread_id"])
        assert len(topics(stage, ada)) == 2


async def last_is(person: Person, text: str) -> bool:
    """Return whether the bot's last text is `text`."""
    return any(each["text"] == text for each in (await answers(person))[-1:])


@pytest.mark.parametrize("why", ["off", "BotFather", "refused"])
async def test_without_topics_everything_stays_in_one_chat(stage: Stage, why: str) -> None:
    """No topic is created by default, without BotFather's setting, or if Telegram refuses."""
    stage.emulator.world.bot["has_topics_enabled"] = why != "BotFather"
    if why == "refused":
        stage.emulator.faults.plan(
            "refused", 1, methods=["createForumTopic"], words="not enough rights to create a topic"
        )
    async with stage.bot(chat={} if why == "off" else ON), stage.person() as ada:
        answer = await ada.asks(photo=png(), caption="What?")
        assert "message_thread_id" not in answer
        assert topics(stage, ada) == {}
        await ada.asks("And?")
        assert stage.emulator.calls.get("createforumtopic", 0) == (why == "refused")


async def test_an_interrupted_answer_stays_in_its_topic(stage: Stage) -> None:
    """After a stop in mid-answer, the next process finishes it in the same topic, with the conversation there."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token, chat=ON)
        first = RunningBot(made, stage.directory, ScriptedEngine([never]), Notebook())
        first.start()
        await ada.sends(photo=png(), caption="What?")
        await until(lambda: bool(first.engine.prompts))
        await first.stop(grace=0)
        async with stage.bot("Whole.", chat=ON) as second:
            answer = await ada.answer(rated=True)
            (topic,) = topics(stage, ada)
            assert answer["message_thread_id"] == topic
            await ada.asks("And?", topic=topic)
            assert second.engine.heard() == ["What?", "Whole.", "And?"]
