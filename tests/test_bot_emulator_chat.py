"""The emulator as bots and people use it day by day, driven by aiogram over HTTP."""

from __future__ import annotations

import pytest

from bot.emulator import Emulator
from tests.emulated import echo_bot, jpeg, running
from tests.person import UP, Person


async def test_a_photo_is_answered_by_edits_and_rated() -> None:
    """A photo with a caption reaches the bot in several sizes, its edits reach the person, and a tap is answered."""
    emulator = Emulator()
    async with running(emulator) as (url, bot), echo_bot(bot), Person(url, 7, "Ada") as ada:
        sent = await ada.sends(photo=jpeg(1600, 1200), caption="What is this?")
        assert [size["width"] for size in sent["photo"]] == [90, 320, 800, 1280]
        answer = await ada.answer(rated=True)
        assert answer["text"] == "I see: What is this?"
        assert await ada.toast(await ada.taps(UP, answer)) == "Thanks"
        assert await ada.counts() == {"sends": 1, "edits": 2, "deletes": 0, "refusals": 0}
        assert len(await ada.bot_messages()) == 1


async def test_a_reply_without_buttons_is_final_when_it_rests() -> None:
    """Person.answer takes a plain reply once it no longer changes."""
    async with running(Emulator()) as (url, bot), echo_bot(bot), Person(url, 7) as ada:
        await ada.command("/help")
        assert (await ada.answer(quiet=0.2))["text"] == "You said /help"


async def test_a_missing_answer_is_told_with_the_chat() -> None:
    """Person.answer gives up after its time and shows the chat so far."""
    async with running(Emulator()) as (url, _), Person(url, 7, "Ada") as ada:
        await ada.sends("anybody there?")
        with pytest.raises(TimeoutError, match=r"Ada waited .* s for an answer to message \d+\n.*\n.*anybody there\?"):
            await ada.answer(seconds=0.2)


async def test_a_photo_can_be_downloaded() -> None:
    """getFile gives an address under which the very bytes of the largest size lie."""
    async with running(Emulator()) as (url, bot), Person(url, 7) as ada:
        picture = jpeg()
        await ada.sends(photo=picture)
        update = (await bot.get_updates())[0]
        assert update.message is not None and update.message.photo is not None
        loaded = await bot.download(update.message.photo[-1])
        assert loaded is not None and loaded.read() == picture
