"""Pictures whose captions are commands."""

from __future__ import annotations

import pytest

from tests.support.chatting import Stage, final_reply, png

CALLED = "@thumbtune_bot"


async def test_new_in_a_caption_begins_a_conversation(stage: Stage) -> None:
    """/new in a caption begins a conversation with the rest of the caption as the question.

    An edited caption changes the question but begins no conversation.
    """
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="a?")
        question = await ada.sends(photo=png(colour="red"), caption="/New b?")
        assert (await ada.answer(rated=True))["text"] == "Answer 2"
        assert bot.engine.heard() == ["b?"]
        await ada.asks("c?")
        assert bot.engine.heard() == ["b?", "Answer 2", "c?"]
        await ada.edits(question, "/new d?")
        await stage.handled(bot)
        assert bot.engine.heard() == ["d?"]
        await ada.asks("e?")
        assert bot.engine.heard() == ["d?", "Answer 4", "c?", "Answer 3", "e?"], "an edit begins nothing"
        await ada.asks(album=[png(), png()], caption="/new")
        assert bot.engine.heard() == [bot.settings.chat.default_question]
        group = stage.emulator.add_group("Friends", [ada.id]).id
        await ada.sends(photo=png(), caption=f"/new{CALLED} f?", chat=group)
        await ada.answer(rated=True, chat=group)
        assert bot.engine.heard() == ["f?"]


@pytest.mark.parametrize("command", ["/retry", "/help", f"/stop{CALLED} it"])
async def test_a_picture_with_another_command_is_refused(stage: Stage, command: str) -> None:
    """A picture captioned with a command other than /new is refused, and the command has no effect.

    A caption that only looks like a command is a question.
    """
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="/r/aww a?")
        refused = await final_reply(ada, photo=png(), caption=command)
        assert f"Send {command.split(CALLED)[0]} on its own" in refused["text"]
        assert bot.engine.heard() == ["/r/aww a?"]
        assert len(await ada.bot_messages()) == 2
