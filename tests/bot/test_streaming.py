"""Streaming an answer: pages, partial edits, flood control, broken connections and the final text."""

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
    """Markdown is removed from the text and becomes entities, measured in UTF-16 code units."""
    (page,) = markdown_pages("😀 **bold** and `code`")
    assert page.text == "😀 bold and code"
    assert [(each.type, each.offset, each.length) for each in page.entities] == [("bold", 3, 4), ("code", 12, 4)]


@pytest.mark.parametrize("text", ["<img>", "a < b > c", "**", "<|im_end|>", "2 * 3 * 4", "_", "```", "[x](", "<b>"])
def test_odd_markup_is_never_shown_as_nothing(text: str) -> None:
    """A text with odd markup never becomes empty."""
    (page,) = markdown_pages(text)
    assert page.text


def test_only_web_links_are_links() -> None:
    """A link to anything but a web page is reduced to its text."""
    (page,) = markdown_pages("[a](javascript:alert) [b](https://example.org) [c](tg://user?id=1)")
    assert page.text == "a b c"
    assert [each.url for each in page.entities] == ["https://example.org"]


def test_a_blank_text_has_no_page() -> None:
    """A text without visible characters gives no page, since a message needs at least one such character."""
    assert plain_pages(" \n\t") == markdown_pages("  \n") == ()


@pytest.mark.parametrize("unit", ["😀", "a", "好", "word ", "Sentence one. ", "短句。", "line\n", "Paragraph.\n\n"])
def test_long_texts_are_split_at_good_places(unit: str) -> None:
    """A long text is split into well-filled pages that each fit in a message; only whitespace is lost."""
    text = unit * (20_000 // len(unit))
    pages = plain_pages(text)
    assert all(utf16_len(page.text) <= LIMIT for page in pages)
    assert all(utf16_len(page.text) >= LIMIT * 0.9 for page in pages[:-1])
    assert "".join("".join(page.text.split()) for page in pages) == "".join(text.split())
    if unit.strip() != unit or unit.endswith("。"):
        assert all(page.text.endswith(unit.strip()) for page in pages)


def test_entities_are_split_with_their_text() -> None:
    """An entity that spans a page break continues on the next page."""
    pages = markdown_pages(f"**{'word ' * 1500}end**")
    assert len(pages) == 2
    for page in pages:
        (bold,) = page.entities
        assert (bold.type, bold.offset, bold.length) == ("bold", 0, utf16_len(page.text))


def test_pages_compare_by_content() -> None:
    """Pages with equal content compare equal, so that no edit is sent twice."""
    entity = MessageEntity(type="bold", offset=0, length=1)
    assert Page("a", (entity,)) == Page("a", (MessageEntity(type="bold", offset=0, length=1),))


async def test_the_first_words_are_shown_before_the_answer_is_done(stage: Stage) -> None:
    """The placeholder appears at once, the first words as soon as they exist, and the thumbs at the end."""
    first, last = asyncio.Event(), asyncio.Event()
    async with stage.bot([first, "The first words", last, " and the last."]), stage.person() as ada:
        await ada.sends(photo=png())
        assert button(await shows(ada, "Looking at your picture…"), UP) is None
        first.set()
        assert button(await shows(ada, "The first words"), UP) is None
        last.set()
        assert (await ada.answer(rated=True))["text"] == "The first words and the last."
        assert (await ada.counts())["sends"] == 1


async def test_edits_are_spaced_out(stage: Stage) -> None:
    """An answer of many words causes few edits: an immediate one, one per interval and a final one."""
    words = [step for number in range(60) for step in (f"{number} ", 0.01)]
    began = time.monotonic()
    async with stage.bot(words, telegram={"edit_seconds": 0.5}), stage.person() as ada:
        answer = await ada.asks(photo=png())
        assert answer["text"].endswith("58 59")
        assert (await ada.counts())["edits"] <= 2 + (time.monotonic() - began) / 0.5


async def test_a_restarted_answer_drops_the_words_before(stage: Stage) -> None:
    """Words from an engine that crashed appear in neither the final answer nor the ledger."""
    async with (
        stage.bot(["Half an ans", 0.1, Delta(restarted=True), 0.1, "A whole answer."]) as bot,
        stage.person() as ada,
    ):
        assert (await ada.asks(photo=png()))["text"] == "A whole answer."
        assert (await bot.ledger.exchanges.get(1)).answer == "A whole answer."


async def test_a_long_answer_takes_several_messages(stage: Stage) -> None:
    """An answer over 4096 characters continues in the next message, and the thumbs are under the last one."""
    text = "".join(f"Sentence number {number}. " for number in range(500))
    async with stage.bot([text[:6000], 0.2, text[6000:]]) as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await bot.settled()
        messages = await ada.bot_messages()
        assert len(messages) == 3
        assert " ".join(message["text"] for message in messages).split() == text.split()
        assert [button(message, UP) is not None for message in messages] == [False, False, True]


async def test_surplus_messages_are_deleted(stage: Stage) -> None:
    """When a long answer is restarted and turns out short, its second message is deleted."""
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
    """With Telegram's limits on and the bot's own limits off, every answer still arrives once, in full."""
    stage.emulator.flood.on = True
    stage.emulator.flood.chat_burst = 2.0
    async with stage.bot([f"{number} " for number in range(30)]) as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        assert answer["text"].split() == [str(number) for number in range(30)]
        await bot.settled()
        assert len(await ada.bot_messages()) == 1
        assert stage.emulator.flood.refusals > 0


async def test_a_refusal_turns_the_rate_limit_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private chat is limited only after Telegram has refused a call; afterwards no call is refused."""
    stage.emulator.flood.on = True
    monkeypatch.setattr("bot.telegram.rate_limit.PRIVATE_SECONDS", 1.1)
    async with stage.bot(telegram={"edit_seconds": 0.2}), stage.person() as ada:
        for number in range(3):
            await ada.asks(photo=png(), caption=f"question {number}")
        refusals = stage.emulator.flood.refusals
        assert refusals > 0
        await ada.asks("Are you sure?")
        assert stage.emulator.flood.refusals == refusals


async def test_groups_are_limited_from_the_start(stage: Stage) -> None:
    """Groups are rate-limited from the start; partial edits are dropped, but answers never are."""
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
async def test_failing_edits_cost_no_answer(stage: Stage, kind: str) -> None:
    """Whichever way partial edits fail, the final answer arrives once, with the thumbs."""
    stage.emulator.faults.plan(kind, 4, methods=["editMessageText"], seconds=1)
    async with stage.bot(["One ", 0.2, "two ", 0.2, "three."]) as bot, stage.person() as ada:
        assert (await ada.asks(photo=png()))["text"] == "One two three."
        await bot.settled()
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 0


@pytest.mark.parametrize(("kind", "messages"), [("reset_before", 1), ("reset_after", 2), ("html_page", 1)])
async def test_a_placeholder_that_may_have_arrived_is_sent_again(stage: Stage, kind: str, messages: int) -> None:
    """A placeholder whose delivery is uncertain is sent again and counted as doubtful; only one answer is sent.

    The placeholder may appear twice.
    """
    stage.emulator.faults.plan(kind, 1, methods=["sendMessage"])
    async with stage.bot("Answer.") as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await bot.settled()
        sent = await ada.bot_messages()
        assert len(sent) == messages
        assert [message["text"] for message in sent if button(message, UP)] == ["Answer."]
        assert (await bot.ledger.counts.totals())["replies_doubtful"] == 1


async def test_nothing_more_is_sent_to_a_user_who_blocked_the_bot(stage: Stage) -> None:
    """After a user blocks the bot, one refused call ends the handling of the update; nothing is retried."""
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


async def test_a_deleted_placeholder_is_replaced(stage: Stage) -> None:
    """If the placeholder has been deleted, the answer is sent as a new message."""
    go_on = asyncio.Event()
    async with stage.bot([go_on, "Here."]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        placeholder = await shows(ada, "Looking at your picture…")
        await bot.bot.delete_message(ada.id, placeholder["message_id"])
        go_on.set()
        assert (await ada.answer(rated=True))["text"] == "Here."
