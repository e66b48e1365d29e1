"""An answer on its way to the screen: pages, edits while it grows, floods, broken connections, the final text."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiogram.types import MessageEntity
from telegramify_markdown import utf16_len

from bot.telegram.formatting import LIMIT, Page, markdown_pages, plain_pages
from inference.messages import Delta
from tests.support.chatting import Stage, png, shows, until
from tests.support.person import UP, button


def test_markdown_becomes_entities() -> None:
    """Markup is taken out of the text and told apart, in UTF-16 units."""
    (page,) = markdown_pages("😀 **bold** and `code`")
    assert page.text == "😀 bold and code"
    assert [(each.type, each.offset, each.length) for each in page.entities] == [("bold", 3, 4), ("code", 12, 4)]


@pytest.mark.parametrize("text", ["<img>", "a < b > c", "**", "<|im_end|>", "2 * 3 * 4", "_", "```", "[x](", "<b>"])
def test_odd_markup_never_leaves_nothing(text: str) -> None:
    """Whatever a model writes, something of it is shown."""
    (page,) = markdown_pages(text)
    assert page.text


def test_only_web_links_can_be_followed() -> None:
    """A link to anything but a web page is shown as its text."""
    (page,) = markdown_pages("[a](javascript:alert) [b](https://example.org) [c](tg://user?id=1)")
    assert page.text == "a b c"
    assert [each.url for each in page.entities] == ["https://example.org"]


def test_a_blank_text_has_no_page() -> None:
    """There is no message without a visible character."""
    assert plain_pages(" \n\t") == markdown_pages("  \n") == ()


@pytest.mark.parametrize("unit", ["😀", "a", "好", "word ", "Sentence one. ", "短句。", "line\n", "Paragraph.\n\n"])
def test_long_texts_are_cut_at_good_places(unit: str) -> None:
    """Every page fits, pages are well filled, and nothing but white space is lost."""
    text = unit * (20_000 // len(unit))
    pages = plain_pages(text)
    assert all(utf16_len(page.text) <= LIMIT for page in pages)
    assert all(utf16_len(page.text) >= LIMIT * 0.9 for page in pages[:-1])
    assert "".join("".join(page.text.split()) for page in pages) == "".join(text.split())
    if unit.strip() != unit or unit.endswith("。"):
        assert all(page.text.endswith(unit.strip()) for page in pages)


def test_entities_are_cut_with_their_text() -> None:
    """An entity across a cut goes on, on the next page, from its first character."""
    pages = markdown_pages(f"**{'word ' * 1500}end**")
    assert len(pages) == 2
    for page in pages:
        (bold,) = page.entities
        assert (bold.type, bold.offset, bold.length) == ("bold", 0, utf16_len(page.text))


def test_pages_compare_by_what_they_show() -> None:
    """Equal pages are equal, so nothing is sent twice."""
    entity = MessageEntity(type="bold", offset=0, length=1)
    assert Page("a", (entity,)) == Page("a", (MessageEntity(type="bold", offset=0, length=1),))


async def test_the_first_words_are_shown_before_the_answer_is_done(stage: Stage) -> None:
    """The placeholder comes at once, the first words as soon as they exist, the thumbs only in the end."""
    first, last = asyncio.Event(), asyncio.Event()
    async with stage.bot([first, "The first words", last, " and the last."]), stage.person() as ada:
        await ada.sends(photo=png())
        assert button(await shows(ada, "Looking at your picture…"), UP) is None
        first.set()
        assert button(await shows(ada, "The first words"), UP) is None
        last.set()
        assert (await ada.answer(rated=True))["text"] == "The first words and the last."
        assert (await ada.counts())["sends"] == 1


async def test_edits_keep_their_distance(stage: Stage) -> None:
    """Many words make few edits: one at once, then one in each interval, then the final one."""
    words = [step for number in range(60) for step in (f"{number} ", 0.01)]
    began = time.monotonic()
    async with stage.bot(words, telegram={"edit_seconds": 0.5}), stage.person() as ada:
        answer = await ada.asks(photo=png())
        assert answer["text"].endswith("58 59")
        assert (await ada.counts())["edits"] <= 2 + (time.monotonic() - began) / 0.5


async def test_a_restarted_answer_forgets_the_words_before(stage: Stage) -> None:
    """What a crashed engine said is gone from the final answer, and from the record."""
    async with (
        stage.bot(["Half an ans", 0.1, Delta(restarted=True), 0.1, "A whole answer."]) as bot,
        stage.person() as ada,
    ):
        assert (await ada.asks(photo=png()))["text"] == "A whole answer."
        assert (await bot.ledger.exchanges.get(1)).answer == "A whole answer."


async def test_a_long_answer_takes_several_messages(stage: Stage) -> None:
    """Beyond 4096 characters the answer goes on in the next message; the thumbs are under the last."""
    text = "".join(f"Sentence number {number}. " for number in range(500))
    async with stage.bot([text[:6000], 0.2, text[6000:]]) as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await bot.settled()
        messages = await ada.bot_messages()
        assert len(messages) == 3
        assert " ".join(message["text"] for message in messages).split() == text.split()
        assert [button(message, UP) is not None for message in messages] == [False, False, True]


async def test_messages_that_are_left_over_go_away(stage: Stage) -> None:
    """When a long answer begins anew and is short, the second message is taken back."""
    shown = asyncio.Event()
    async with (
        stage.bot(["word " * 1000, shown, Delta(restarted=True), "Short."]) as bot,
        stage.person() as ada,
    ):
        await ada.sends(photo=png())
        await until(lambda: stage.emulator.counts(ada.id).sends == 2)
        shown.set()
        assert (await ada.answer(rated=True))["text"] == "Short."
        await bot.settled()
        assert [message["text"] for message in await ada.bot_messages()] == ["Short."]


async def test_the_final_text_survives_flood_control(stage: Stage) -> None:
    """With Telegram's limits on and no mercy from our own pace, every answer still arrives once and whole."""
    stage.emulator.flood.on = True
    stage.emulator.flood.chat_burst = 2.0
    async with stage.bot([f"{number} " for number in range(30)]) as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        assert answer["text"].split() == [str(number) for number in range(30)]
        await bot.settled()
        assert len(await ada.bot_messages()) == 1
        assert stage.emulator.flood.refusals > 0


async def test_after_a_complaint_the_pace_is_kept(stage: Stage) -> None:
    """Quick until Telegram refuses a call; from then on at the pace of the settings, without further refusals."""
    stage.emulator.flood.on = True
    pace = {"edit_seconds": 0.2, "chat_calls_per_second": 0.9}
    async with stage.bot(telegram=pace), stage.person() as ada:
        for number in range(3):
            await ada.asks(photo=png(), caption=f"question {number}")
        refusals = stage.emulator.flood.refusals
        assert refusals > 0
        await ada.asks("Are you sure?")
        assert stage.emulator.flood.refusals == refusals


async def test_groups_are_paced_before_anybody_complains(stage: Stage) -> None:
    """Telegram's limit for groups is kept from the start; what is saved is edits in between, never an answer."""
    stage.emulator.flood.on = True
    words = [step for number in range(40) for step in (f"{number} ", 0.02)]
    pace = {"edit_seconds": 0.01, "group_calls_per_minute": 20}
    async with stage.bot(words, words, telegram=pace), stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        for _ in range(2):
            await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
            assert (await ada.answer(rated=True, chat=group))["text"].endswith("39")
        assert stage.emulator.flood.refusals == 0


@pytest.mark.parametrize("kind", ["bad_gateway", "html_page", "reset_before", "reset_after", "flood"])
async def test_trouble_with_edits_costs_no_answer(stage: Stage, kind: str) -> None:
    """Whatever goes wrong with edits, the final one arrives once, with the thumbs."""
    stage.emulator.faults.plan(kind, 4, methods=["editMessageText"], seconds=1)
    async with stage.bot(["One ", 0.2, "two ", 0.2, "three."]) as bot, stage.person() as ada:
        assert (await ada.asks(photo=png()))["text"] == "One two three."
        await bot.settled()
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 0


@pytest.mark.parametrize(("kind", "messages"), [("reset_before", 1), ("reset_after", 2), ("html_page", 1)])
async def test_a_placeholder_that_may_have_arrived_is_sent_again(stage: Stage, kind: str, messages: int) -> None:
    """The one window: a placeholder may stand twice, is counted, and there is one answer."""
    stage.emulator.faults.plan(kind, 1, methods=["sendMessage"])
    async with stage.bot("Answer.") as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await bot.settled()
        sent = await ada.bot_messages()
        assert len(sent) == messages
        assert [message["text"] for message in sent if button(message, UP)] == ["Answer."]
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 1


async def test_who_blocks_the_bot_is_left_alone(stage: Stage) -> None:
    """One call tells that nobody is there; the update is done, nothing is tried again."""
    go_on = asyncio.Event()
    async with stage.bot(["Some", go_on, "thing"]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await shows(ada, "Some")
        await ada.blocks()
        calls = stage.emulator.calls["editmessagetext"]
        go_on.set()
        await bot.settled()
        assert stage.emulator.calls["editmessagetext"] == calls + 1
        assert await bot.ledger.inbox.pending() == []


async def test_a_deleted_placeholder_does_not_swallow_the_answer(stage: Stage) -> None:
    """When the message to edit is gone, the answer is sent anew."""
    go_on = asyncio.Event()
    async with stage.bot([go_on, "Here."]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        placeholder = await shows(ada, "Looking at your picture…")
        await bot.bot.delete_message(ada.id, placeholder["message_id"])
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Here."
