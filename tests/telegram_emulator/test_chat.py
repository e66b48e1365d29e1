"""The Telegram emulator in everyday use by bots and users, driven by aiogram over HTTP."""

from __future__ import annotations

import socket

import pytest
from aiogram.types import BufferedInputFile, InputMediaPhoto, LinkPreviewOptions, MessageEntity

from telegram_emulator import Emulator
from telegram_emulator.event_log import EventLog
from tests.support.emulated import THUMBS, echo_bot, jpeg, running
from tests.support.person import UP, Person


async def test_a_photo_is_answered_by_edits_and_rated() -> None:
    """A photo with a caption reaches the bot in several sizes, and the bot's edits reach the user.

    The user's tap on a rating button is answered.
    """
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
    """`Person.answer` accepts a message without buttons as final once it no longer changes."""
    async with running(Emulator()) as (url, bot), echo_bot(bot), Person(url, 7) as ada:
        await ada.command("/help")
        assert (await ada.answer(quiet=0.2))["text"] == "You said /help"


async def test_a_missing_answer_is_told_with_the_chat() -> None:
    """`Person.answer` raises TimeoutError, with the chat so far, if no answer arrives in time."""
    async with running(Emulator()) as (url, _), Person(url, 7, "Ada") as ada:
        await ada.sends("anybody there?")
        with pytest.raises(TimeoutError, match=r"Ada waited .* s for an answer to message \d+\n.*\n.*anybody there\?"):
            await ada.answer(seconds=0.2)


async def test_a_photo_can_be_downloaded() -> None:
    """getFile returns a path from which the largest size of a photo can be downloaded unchanged."""
    async with running(Emulator()) as (url, bot), Person(url, 7) as ada:
        picture = jpeg()
        await ada.sends(photo=picture)
        update = (await bot.get_updates())[0]
        assert update.message is not None and update.message.photo is not None
        loaded = await bot.download(update.message.photo[-1])
        assert loaded is not None and loaded.read() == picture


async def test_pictures_and_files_go_out_with_their_captions() -> None:
    """A bot can upload photos and documents with captions, and replace a photo or a text with a photo."""
    async with running(Emulator()) as (url, bot), Person(url, 7) as ada:
        await ada.sends("hello")
        bold = [MessageEntity(type="bold", offset=0, length=4)]
        photo = await bot.send_photo(7, BufferedInputFile(jpeg(), "curve.png"), caption="loss", caption_entities=bold)
        assert photo.photo is not None and photo.caption_entities is not None
        assert photo.caption_entities[0].type == "bold"
        document = await bot.send_document(7, BufferedInputFile(b"{}", "data.json"), reply_markup=THUMBS)
        assert document.document is not None
        assert (document.document.file_name, document.document.mime_type) == ("data.json", "application/json")
        text = await bot.send_message(7, "wait")
        for message in (photo, text):
            await message.edit_media(InputMediaPhoto(media=BufferedInputFile(jpeg(90, 90), "x"), caption="other"))
        shown = {message["message_id"]: message for message in await ada.bot_messages()}
        for message in (photo, text):
            assert shown[message.message_id]["caption"] == "other"
            assert shown[message.message_id]["photo"][-1]["width"] == 90
        assert "text" not in shown[text.message_id]


async def test_the_bot_learns_its_own_name() -> None:
    """getMe returns the bot's name and the ID at the beginning of the bot's token."""
    async with running(Emulator(token="555:x")) as (_, bot):
        me = await bot.get_me()
        assert (me.id, me.first_name, me.username, me.is_bot) == (555, "thumbtune", "thumbtune_bot", True)


async def test_link_previews_and_replies_are_kept() -> None:
    """A message keeps the link preview options that it was sent with."""
    async with running(Emulator()) as (url, bot), Person(url, 7) as ada:
        await ada.sends("hello")
        quiet = LinkPreviewOptions(is_disabled=True)
        sent = await bot.send_message(7, "https://example.org", link_preview_options=quiet)
        assert sent.link_preview_options is not None and sent.link_preview_options.is_disabled
        assert sent.entities is not None and sent.entities[0].type == "url"


async def test_a_taken_port_is_told() -> None:
    """Starting the emulator on a port that is in use raises OSError and leaves nothing running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            await Emulator().start(port=taken.getsockname()[1])


async def test_a_follower_that_lost_its_place_starts_over() -> None:
    """A reader that has lost its place in the event log gets a reset event, and then new events.

    The place is lost if its event number is no longer kept or comes from another server.
    """
    events = EventLog()
    for number in range(50_000):
        events.publish("message", 7, number=number)
    for place in (3, 10**9):
        follower = events.follow(place, lambda _: True)
        assert (await anext(follower))["kind"] == "reset"
        events.publish("message", 7, number="new")
        assert (await anext(follower))["number"] == "new"
        await follower.aclose()
    close = events.follow(events.last - 2, lambda event: event["number"] != "new")
    events.publish("message", 7, number="last")
    assert (await anext(close))["number"] == "last"
    await close.aclose()


async def test_ids_go_on_above_those_of_an_earlier_emulator() -> None:
    """A restarted emulator gives updates higher numbers than before, so that bots treat them as new."""
    first = Emulator().world.updates
    number = first.add("message", {"text": "now"})
    assert number is not None and number > 250_000_000 and number < 2**31
