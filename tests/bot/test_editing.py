"""Edited questions: the new answer replaces the earlier one."""

from __future__ import annotations

import asyncio

from tests.support.chatting import Stage, final_reply, png, shows, until
from tests.support.person import UP, button


async def test_an_edited_question_is_answered_in_place(stage: Stage) -> None:
    """The answer to an edited question replaces the earlier answer in the same message.

    The earlier exchange is kept but left out of the history.
    """
    async with stage.bot("One.", "Later.", "word " * 1000, "Last.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="How many?")
        first = await ada.answer(rated=True)
        await ada.asks("b?")
        await ada.edits(question, "Which colour?")
        await until(lambda: len(bot.engine.prompts) == 3)
        await bot.settled()
        messages = await ada.bot_messages()
        assert [button(each, UP) for each in messages] == [None, "rate:2:1", "rate:3:1"], "a long answer goes on below"
        assert messages[0]["message_id"] == first["message_id"]
        assert messages[0]["text"].startswith("word word")
        former, new = [await bot.ledger.exchanges.get(number) for number in (1, 3)]
        assert (former.question, new.question, new.replaces) == ("How many?", "Which colour?", 1)
        assert former.pictures == new.pictures
        await ada.asks("c?")
        assert (bot.engine.heard())[0] == "Which colour?"
        await ada.edits(question, "Which shape?")
        await until(lambda: len(bot.engine.prompts) == 5)
        await bot.settled()
        assert [each["text"] for each in await ada.bot_messages()] == ["Answer 5", "Later.", "Last."]
        assert (await bot.ledger.exchanges.get(5)).replaces == 1


async def test_a_question_edited_in_flight_is_asked_again(stage: Stage) -> None:
    """Editing a question stops its answer in flight and starts another.

    The result is one message, one exchange and one answer.
    """
    never = asyncio.Event()
    async with stage.bot(["Four", never], "Teal.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="How many?")
        await shows(ada, "Four")
        await ada.edits(question, "Which colour?")
        assert (await ada.answer(rated=True))["text"] == "Teal."
        await bot.settled()
        assert [prompt.turns[-1].text for prompt in bot.engine.prompts] == ["How many?", "Which colour?"]
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.counts.totals())["exchanges"] == 1


async def test_a_question_edited_while_it_waits_is_asked_as_edited(stage: Stage) -> None:
    """A question edited while it waits reaches the engine only in its final wording."""
    gate = asyncio.Event()
    async with stage.bot(["One", gate]) as bot, stage.person() as ada:
        await ada.sends(photo=png(), caption="a?")
        await shows(ada, "One")
        waiting = await ada.sends("b?")
        await ada.edits(waiting, "c?")
        await ada.edits(waiting, "d?")
        await until(lambda: bot.inbox.pending == 4)
        gate.set()
        assert (await ada.answer(rated=True))["text"] == "Answer 2"
        await bot.settled()
        assert [prompt.turns[-1].text for prompt in bot.engine.prompts] == ["a?", "d?"]
        assert len(await ada.bot_messages()) == 2


async def test_an_edit_without_a_change_is_ignored(stage: Stage) -> None:
    """An edit that leaves the text unchanged, such as an added link preview, is ignored."""
    async with stage.bot() as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="What?")
        await ada.answer(rated=True)
        edits = (await ada.counts())["edits"]
        await ada.edits(question, "What?")
        command = await ada.command("/help")
        await ada.answer(rated=False, quiet=0.2)
        await ada.edits(command, "/start")
        await stage.handled(bot)
        assert len(bot.engine.prompts) == 1
        assert (await ada.counts())["edits"] == edits + 1, "the words of /help"


async def test_an_edit_of_a_refused_question_is_answered(stage: Stage) -> None:
    """If a refused question is edited, the answer replaces the refusal in the same message."""
    async with stage.bot("Yes.", chat={"max_question_characters": 10}) as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="A question that is too long")
        assert "too long" in (await final_reply(ada))["text"]
        await ada.edits(question, "Short?")
        answer = await ada.answer(rated=True)
        assert answer["text"] == "Yes."
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.exchanges.get(1)).replaces is None


async def test_an_edit_in_a_former_conversation_is_answered_there(stage: Stage) -> None:
    """A question edited after /new or after a regenerated answer is answered with its original history.

    The newer conversation continues unaffected.
    """
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="a?")
        question = await ada.sends("b?")
        await ada.answer(rated=True)
        await ada.asks("/retry")
        await final_reply(ada, "/new")
        await ada.edits(question, "c?")
        await stage.handled(bot)
        assert bot.engine.heard() == ["a?", "Answer 1", "c?"]
        assert [each["text"] for each in await ada.bot_messages()][2] == "Answer 4"
        assert "Send me a picture first" in (await final_reply(ada, "d?"))["text"]
        await ada.asks(photo=png(colour="red"), caption="e?")
        await ada.edits(question, "f?")
        await stage.handled(bot)
        assert bot.engine.heard() == ["a?", "Answer 1", "f?"]
        await ada.asks("g?")
        assert bot.engine.heard() == ["e?", "Answer 5", "g?"]
