"""The emulator refuses the texts, captions and buttons that Telegram refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiogram import Bot
from aiogram.types import BufferedInputFile, InlineKeyboardButton, InlineKeyboardMarkup, InputMediaPhoto, MessageEntity

from tests.support.emulated import acquainted, jpeg, refusal, running

ADA = 7


@pytest.fixture
async def bot() -> AsyncIterator[Bot]:
    """An aiogram client for a bot to which a user, Ada, has already written."""
    async with running(acquainted(ADA)) as (_, bot):
        yield bot


TEXTS = [
    ("", {}, "message text is empty"),
    (" \n\t ", {}, "text must be non-empty"),
    ("x" * 4097, {}, "message is too long"),
    ("👍" * 2049, {}, "message is too long"),
    ("汉" * 11000, {}, "text is too long"),
    ("<b>hello</b>", {"parse_mode": "HTML"}, "parse_mode is not supported by the emulator: send entities"),
    ("short", {"entities": [("bold", 9, 1)]}, "entity begins after the end of the text at UTF-16 offset 9"),
    (
        "short",
        {"entities": [("bold", 2, 9)]},
        "entity beginning at UTF-16 offset 2 ends after the end of the text at UTF-16 offset 11",
    ),
    ("a👍b", {"entities": [("bold", 2, 1)]}, "entity begins in a middle of a UTF-16 symbol at byte offset 5"),
    (
        "a👍b",
        {"entities": [("bold", 0, 2)]},
        "entity beginning at UTF-16 offset 0 ends in a middle of a UTF-16 symbol at byte offset 5",
    ),
    ("short", {"entities": [("sparkling", 0, 1)]}, "can't parse MessageEntity: Unsupported type specified"),
    ("short", {"entities": [("bold", -1, 1)]}, "receive an entity with incorrect offset -1"),
]


@pytest.mark.parametrize(("text", "markup", "reason"), TEXTS, ids=[reason[-40:] for _, _, reason in TEXTS])
async def test_a_bad_text_is_refused(bot: Bot, text: str, markup: dict[str, Any], reason: str) -> None:
    """sendMessage and editMessageText refuse empty texts, over-long texts and invalid entities."""
    options = dict(markup)
    if "entities" in options:
        options["entities"] = [MessageEntity(type=t, offset=o, length=n) for t, o, n in options["entities"]]
    with refusal(f"Bad Request: {reason}"):
        await bot.send_message(ADA, text, **options)
    sent = await bot.send_message(ADA, "before")
    with refusal(f"Bad Request: {reason}"):
        await bot.edit_message_text(text, chat_id=ADA, message_id=sent.message_id, **options)


async def test_the_longest_text_and_caption_pass(bot: Bot) -> None:
    """Texts of up to 4096 UTF-16 units and captions of up to 1024 are accepted."""
    text = "👍" * 2048
    assert (await bot.send_message(ADA, text)).text == text
    caption = "c" * 1024
    photo = BufferedInputFile(jpeg(), "x.jpg")
    assert (await bot.send_photo(ADA, photo, caption=caption)).caption == caption


async def test_an_over_long_caption_is_refused(bot: Bot) -> None:
    """A caption of 1025 UTF-16 units is refused for a photo, for a document and in an edit."""
    reason = "Bad Request: message caption is too long"
    photo = BufferedInputFile(jpeg(), "x.jpg")
    with refusal(reason):
        await bot.send_photo(ADA, photo, caption="c" * 1025)
    with refusal(reason):
        await bot.send_document(ADA, photo, caption="👍" * 513)
    sent = await bot.send_photo(ADA, photo)
    with refusal(reason):
        await sent.edit_media(InputMediaPhoto(media=photo, caption="c" * 1025))


def keyboard(**button: Any) -> InlineKeyboardMarkup:
    """Return an inline keyboard with one button that has the given fields."""
    return InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(**button)]])


async def test_callback_data_has_up_to_64_bytes(bot: Bot) -> None:
    """Callback data is limited to 64 bytes, not characters, and a button without an action is refused."""
    await bot.send_message(ADA, "x", reply_markup=keyboard(text="go", callback_data="汉" * 21 + "x"))
    with refusal("Bad Request: BUTTON_DATA_INVALID"):
        await bot.send_message(ADA, "x", reply_markup=keyboard(text="go", callback_data="汉" * 22))
    with refusal("Bad Request: can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard"):
        await bot.send_message(ADA, "x", reply_markup=keyboard(text="go"))
    with refusal("Bad Request: inline keyboard button text must be non-empty"):
        await bot.send_message(ADA, "x", reply_markup=keyboard(text="", callback_data="go"))
