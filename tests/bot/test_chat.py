"""Chats between a user and the bot: pictures, follow-ups, albums, commands, languages, thumbs."""

from __future__ import annotations

import asyncio

import pytest

from inference.chat_format.template import prompt_hash
from inference.internvl2.families import INTERNVL2
from inference.messages import Delta, Role
from tests.support.chatting import ScriptedEngine, Stage, png, shows
from tests.support.person import DOWN, UP, button


async def test_a_picture_is_answered_with_thumbs_under_it(stage: Stage) -> None:
    """A photo with a question gets the model's answer and both thumb buttons in one message."""
    async with stage.bot("A teal **rectangle**.") as bot, stage.person() as ada:
        answer = await ada.asks(photo=png(), caption="What is it?")
        assert answer["text"] == "A teal rectangle."
        assert answer["entities"] == [{"type": "bold", "offset": 7, "length": 9}]
        assert button(answer, UP) == "rate:1:1"
        assert button(answer, DOWN) == "rate:1:-1"
        assert len(await ada.bot_messages()) == 1
        (prompt,) = bot.engine.prompts
        assert prompt.system == INTERNVL2.system
        assert prompt.turns[0].text == "What is it?"
        assert len(prompt.turns[0].pictures) == 1


async def test_the_exchange_records_what_produced_it(stage: Stage) -> None:
    """An exchange records its question, pictures, prompt hash, sampling parameters, model and token counts."""
    async with (
        stage.bot("Teal.", chat={"system_prompt": "Be brief.", "temperature": 0.3}) as bot,
        stage.person() as ada,
    ):
        await ada.asks(photo=png(), caption="Which colour?")
        await bot.settled()
        exchange = await bot.ledger.exchanges.get(1)
        (prompt,) = bot.engine.prompts
        assert exchange.question == "Which colour?"
        assert exchange.answer == "Teal."
        assert exchange.model == "scripted"
        assert exchange.system == "Be brief."
        assert exchange.prompt_hash == prompt_hash(prompt)
        assert exchange.temperature == 0.3
        assert exchange.seed == prompt.sampling.seed is not None
        assert (exchange.top_p, exchange.top_k) == (prompt.sampling.top_p, prompt.sampling.top_k)
        assert exchange.top_k == 50
        assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.encoded_tiles) == (11, 3, 1)
        (sha256,) = exchange.pictures
        assert await bot.pictures.get(sha256) == prompt.turns[0].pictures[0].data
        row = await bot.ledger.pictures.get(sha256)
        assert (row.width, row.height) == (40, 30)


@pytest.mark.parametrize(
    ("language", "question"),
    [("en", "What is in this picture?"), ("zh-hans", "这张图里有什么？"), ("fr", "What is in this picture?")],
)
async def test_a_bare_photo_asks_the_default_question(stage: Stage, language: str, question: str) -> None:
    """A photo without a caption asks the default question in the language of the user's client."""
    async with stage.bot() as bot, stage.person(language=language) as ada:
        await ada.asks(photo=png())
        assert bot.engine.prompts[0].turns[0].text == question


async def test_an_operators_default_question_is_asked_as_written(stage: Stage) -> None:
    """A default question set by the operator is not translated."""
    async with stage.bot(chat={"default_question": "Any cats?"}) as bot, stage.person(language="zh") as ada:
        await ada.asks(photo=png())
        assert bot.engine.prompts[0].turns[0].text == "Any cats?"


async def test_a_follow_up_is_asked_about_the_same_picture(stage: Stage) -> None:
    """The prompt for a follow-up has the picture, the earlier turns and the chat key of the first prompt."""
    async with stage.bot("Teal.", "Four.") as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="Which colour?")
        await ada.asks("How many corners?")
        first, second = bot.engine.prompts
        assert first.chat == second.chat
        assert [(turn.role, turn.text) for turn in second.turns] == [
            (Role.USER, "Which colour?"),
            (Role.ASSISTANT, "Teal."),
            (Role.USER, "How many corners?"),
        ]
        assert second.turns[0].pictures == first.turns[0].pictures
        assert not second.turns[2].pictures


async def test_a_new_picture_replaces_the_old_one(stage: Stage) -> None:
    """With `history_pictures` set to 1, a new photo replaces the history; with 2, the model sees both photos."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png(colour="red"), caption="One")
        await ada.asks("More?")
        await ada.asks(photo=png(colour="blue"), caption="Two")
        assert bot.engine.heard() == ["Two"]
    async with stage.bot(chat={"history_pictures": 2}) as bot, stage.person() as ada:
        await ada.asks("Which is nicer?")
        assert [len(turn.pictures) for turn in bot.engine.prompts[-1].turns] == [1, 0, 0, 0, 1, 0, 0]


async def test_a_long_conversation_is_cut_but_keeps_its_picture(stage: Stage) -> None:
    """A long conversation drops several old turns at once; its picture moves to the oldest remaining turn."""
    async with stage.bot(chat={"history_turns": 4}) as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="q0")
        for number in range(1, 8):
            await ada.asks(f"q{number}")
        asked = [[turn.text for turn in prompt.turns if turn.role is Role.USER] for prompt in bot.engine.prompts]
        assert asked[4] == ["q0", "q1", "q2", "q3", "q4"]
        assert asked[5] == ["q2", "q3", "q4", "q5"]
        assert asked[6] == ["q2", "q3", "q4", "q5", "q6"]
        assert asked[7] == ["q4", "q5", "q6", "q7"]
        for prompt in bot.engine.prompts:
            assert [len(turn.pictures) for turn in prompt.turns] == [1] + [0] * (len(prompt.turns) - 1)


async def test_new_begins_a_conversation(stage: Stage) -> None:
    """After /new, a question without a picture gets a request for a picture."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await ada.command("/new")
        assert "new conversation" in (await ada.answer(rated=False, quiet=0.2))["text"]
        await ada.sends("And now?")
        assert "picture first" in (await ada.answer(rated=False, quiet=0.2))["text"]
        assert len(bot.engine.prompts) == 1


async def test_text_before_any_picture_is_asked_for_one(stage: Stage) -> None:
    """Text sent before any picture is answered with a request for a picture, in the user's language.

    The engine is not called, and nothing is recorded.
    """
    async with stage.bot() as bot, stage.person(language="zh-hans") as ada:
        await ada.sends("你好")
        answer = await ada.answer(rated=False, quiet=0.2)
        assert "图片" in answer["text"]
        assert button(answer, UP) is None
        assert not bot.engine.prompts
        assert (await bot.ledger.counts.totals())["exchanges"] == 0


async def test_a_picture_sent_as_a_file_is_a_picture(stage: Stage) -> None:
    """A document counts as a picture if its media type or its name says so."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(document=png(), file_name="scan.png", media_type="image/png", caption="By type")
        await ada.asks(document=png(), file_name="SCAN.PNG", caption="By name")
        assert [len(prompt.turns[-1].pictures) for prompt in bot.engine.prompts] == [1, 1]


async def test_an_album_is_one_question(stage: Stage) -> None:
    """A media group becomes one question with all its pictures in order."""
    colours = ("red", "green", "blue")
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(album=[png(colour=colour, form="JPEG") for colour in colours], caption="Compare them")
        await bot.settled()
        (prompt,) = bot.engine.prompts
        assert prompt.turns[0].text == "Compare them"
        assert len({picture.sha256 for picture in prompt.turns[0].pictures}) == 3
        assert len(await ada.bot_messages()) == 1
        assert await bot.ledger.inbox.pending() == []


async def test_start_shows_the_id_and_help_the_commands(stage: Stage) -> None:
    """/start shows the user ID, and /help, in any letter case, lists the commands.

    Only admins see the admin commands.
    """
    async with stage.bot(), stage.person(1001) as ada, stage.person(7, "Root") as root:
        await ada.command("/start")
        assert "1001" in (await ada.answer(rated=False, quiet=0.2))["text"]
        await ada.command("/help")
        text = (await ada.answer(rated=False, quiet=0.2))["text"]
        assert "/new" in text
        assert "/retrain" not in text
        await root.command("/HELP")
        assert "/retrain" in (await root.answer(rated=False, quiet=0.2))["text"]


async def test_language_is_chosen_by_button(stage: Stage) -> None:
    """/language offers every language; the one tapped is kept and also applies to the default question."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.command("/language")
        offer = await ada.answer(rated=False, quiet=0.2)
        assert await ada.toast(await ada.taps("中文", offer)) == "从现在起我用中文和您交流。"
        await ada.command("/help")
        assert "图片" in (await ada.answer(rated=False, quiet=0.2))["text"]
        await ada.asks(photo=png())
        assert bot.engine.prompts[0].turns[0].text == "这张图里有什么？"


async def test_a_thumb_is_counted_marked_and_changed(stage: Stage) -> None:
    """Each tap on a thumb records another vote; only the latest one counts and is marked."""
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        assert "like this" in await ada.toast(await ada.taps(UP, answer))
        await bot.settled()
        assert await bot.ledger.votes.latest(1, ada.id) == 1
        assert _labels((await ada.bot_messages())[0]) == ["👍 ✓", "👎", "🔄"]
        assert "do better" in await ada.toast(await ada.taps(DOWN, answer))
        await bot.settled()
        assert await bot.ledger.votes.latest(1, ada.id) == -1
        assert _labels((await ada.bot_messages())[0])[:3] == ["👍", "👎 ✓", "🔄"]
        assert (await bot.ledger.counts.totals())["votes"] == 2


async def test_a_vote_does_not_wait_for_an_answer(stage: Stage) -> None:
    """A tap under an earlier answer is counted at once, even while another answer streams in the same chat."""
    go_on = asyncio.Event()
    async with stage.bot("First.", ["Seco", go_on, "nd."]) as bot, stage.person() as ada:
        first = await ada.asks(photo=png())
        await ada.sends("And?")
        assert "like this" in await ada.toast(await ada.taps(UP, first))
        assert await bot.ledger.votes.latest(1, ada.id) == 1
        assert bot.engine.ended == 1
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Second."


async def test_a_chat_is_answered_in_order_and_chats_concurrently(stage: Stage) -> None:
    """A second question in a chat waits for the first answer; a question in another chat does not."""
    go_on = asyncio.Event()
    engine = ScriptedEngine(otherwise=lambda prompt, _: ["A", go_on, "B"] if prompt.turns[-1].text == "slow" else "C")
    async with stage.bot(engine=engine), stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        await ada.sends(photo=png(), caption="slow")
        await ada.sends("next")
        assert (await bob.asks(photo=png(), caption="quick"))["text"] == "C"
        assert "next" not in [prompt.turns[-1].text for prompt in engine.prompts]
        go_on.set()
        first = await ada.answer(rated=True)
        await ada.answer(rated=True, after=first["message_id"])
        assert [message["text"] for message in await ada.bot_messages()] == ["AB", "C"]


async def test_the_place_in_the_queue_is_shown(stage: Stage) -> None:
    """A user in the queue sees how many questions are ahead, and then the answer."""
    go_on = asyncio.Event()
    async with stage.bot([Delta(waiting=3), go_on, "Done."]), stage.person() as ada:
        await ada.sends(photo=png())
        await shows(ada, "3 questions ahead of yours…")
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Done."


async def test_unknown_commands_and_files_are_refused(stage: Stage) -> None:
    """An unknown command or file in a private chat gets a reply and does not reach the engine."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.command("/dance")
        assert "/help" in (await ada.answer(rated=False, quiet=0.2))["text"]
        await ada.command("/forget me")
        assert "/delete_my_data" in (await ada.answer(rated=False, quiet=0.2))["text"]
        await ada.sends(document=b"%PDF-1.7", file_name="paper.pdf", media_type="application/pdf")
        assert "photo" in (await ada.answer(rated=False, quiet=0.2))["text"]
        assert not bot.engine.prompts


async def test_in_a_group_the_bot_answers_when_addressed(stage: Stage) -> None:
    """In a group, the bot answers messages that mention it or reply to it, and ignores the rest."""
    async with stage.bot() as bot, stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        group = stage.emulator.add_group("Friends", [ada.id, bob.id], privacy=False).id
        await bob.sends("Nice weather", chat=group)
        asked = await ada.sends(photo=png(), caption="@thumbtune_bot What is it?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        assert answer["reply_to_message"]["message_id"] == asked["message_id"]
        assert bot.engine.prompts[0].turns[0].text == "What is it?"
        await bob.toast(await bob.taps(DOWN, answer))
        await ada.sends("Sure?", reply_to=answer["message_id"], chat=group)
        await ada.answer(rated=True, chat=group)
        await bot.settled()
        assert await bot.ledger.votes.latest(1, bob.id) == -1
        assert len(await ada.bot_messages(group)) == 2


def _labels(message: dict[str, object]) -> list[str]:
    markup = message["reply_markup"]
    assert isinstance(markup, dict)
    return [key["text"] for key in markup["inline_keyboard"][0]]
