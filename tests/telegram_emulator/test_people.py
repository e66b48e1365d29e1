"""User actions sent over HTTP, the events that users see, and the updates that the bot receives."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiogram import Bot
from aiogram.types import BotCommand, BotCommandScopeAllPrivateChats, BotCommandScopeChat, Update
from PIL import Image

from telegram_emulator import Emulator, SampleConversation
from tests.support.chatting import png
from tests.support.emulated import THUMBS, echo_bot, jpeg, running
from tests.support.person import DOWN, UP, Person, button

ADA = 7
STICKER = png(form="WEBP")


@pytest.fixture
async def world() -> AsyncIterator[tuple[Emulator, Bot, str, Person]]:
    """An emulator, a bot, the emulator's URL, and a user named Ada who is connected over HTTP."""
    emulator = Emulator(samples={"circle": jpeg(112, 112), "sticker": STICKER})
    async with running(emulator) as (url, bot), Person(url, ADA, "Ada", "zh") as ada:
        yield emulator, bot, url, ada


async def updates_of(bot: Bot) -> list[Update]:
    """Return all pending updates and confirm them."""
    updates = await bot.get_updates()
    if updates:
        await bot.get_updates(offset=updates[-1].update_id + 1)
    return updates


async def test_a_text_tells_who_wrote_it(world: tuple[Emulator, Bot, str, Person]) -> None:
    """A text message reaches the bot with the author's name and language and any command entities."""
    _, bot, _, ada = world
    await ada.command("/start now")
    (update,) = await updates_of(bot)
    message = update.message
    assert message is not None and message.from_user is not None and message.entities is not None
    assert (message.from_user.id, message.from_user.first_name, message.from_user.language_code) == (ADA, "Ada", "zh")
    assert (message.chat.type, message.entities[0].extract_from(message.text or "")) == ("private", "/start")


async def test_an_album_comes_as_separate_updates(world: tuple[Emulator, Bot, str, Person]) -> None:
    """An album of three pictures arrives as three updates sharing a media_group_id; the first has the caption."""
    _, bot, _, ada = world
    await ada.sends(album=[jpeg(colour=colour) for colour in ("red", "green", "blue")], caption="which?")
    messages = [update.message for update in await updates_of(bot) if update.message]
    assert len(messages) == 3
    assert len({message.media_group_id for message in messages} - {None}) == 1
    assert [message.caption for message in messages] == ["which?", None, None]


async def test_a_document_keeps_its_bytes_name_and_type(world: tuple[Emulator, Bot, str, Person]) -> None:
    """A document reaches the bot with its bytes, name and type unchanged, whatever its content."""
    _, bot, _, ada = world
    await ada.sends(document=b"not a picture", file_name="odd.jpg", media_type="image/jpeg", caption="look")
    (update,) = await updates_of(bot)
    assert update.message is not None and update.message.document is not None
    document = update.message.document
    assert (document.file_name, document.mime_type, document.file_size) == ("odd.jpg", "image/jpeg", 13)
    loaded = await bot.download(document)
    assert loaded is not None and loaded.read() == b"not a picture"


async def test_a_long_text_is_cut_as_by_telegrams_apps(world: tuple[Emulator, Bot, str, Person]) -> None:
    """A text of 5,000 characters is split at a space and arrives as two messages.

    A caption that is too long is refused, not split.
    """
    _, bot, _, ada = world
    await ada.sends("word " * 1000)
    await ada.sends("👍" * 3000)
    texts = [update.message.text or "" for update in await updates_of(bot) if update.message]
    assert [len(text) for text in texts] == [4094, 904, 2048, 952]
    assert " ".join(texts[:2]) == ("word " * 1000).strip()
    with pytest.raises(AssertionError, match="message caption is too long"):
        await ada.sends(photo=jpeg(), caption="x" * 1025)


async def test_photos_are_upright_jpegs_of_at_most_1280(world: tuple[Emulator, Bot, str, Person]) -> None:
    """Photos reach the bot as upright JPEGs of at most 1280 pixels a side.

    A large PNG arrives as a JPEG in four sizes. A damaged photo is refused unless it is sent as a raw photo.
    """
    _, bot, _, ada = world
    encoded = io.BytesIO()
    Image.new("RGBA", (2000, 1000), "red").save(encoded, "PNG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (600, 400)).save(turned, "JPEG", exif=exif)
    await ada.sends(photo=encoded.getvalue())
    await ada.sends(photo=turned.getvalue())
    with pytest.raises(AssertionError, match="IMAGE_PROCESS_FAILED"):
        await ada.sends(photo=jpeg()[:300])
    await ada.sends(raw_photo=jpeg()[:300])
    large, upright, broken = [update.message for update in await updates_of(bot)]
    assert large and large.photo and upright and upright.photo and broken and broken.photo
    assert [(size.width, size.height) for size in large.photo] == [(90, 45), (320, 160), (800, 400), (1280, 640)]
    assert (upright.photo[-1].width, upright.photo[-1].height) == (400, 600)
    for message, size in ((large, (1280, 640)), (upright, (400, 600))):
        assert message.photo
        loaded = await bot.download(message.photo[-1])
        assert loaded is not None
        with Image.open(loaded) as picture:
            assert (picture.format, picture.size) == ("JPEG", size)
    damaged = await bot.download(broken.photo[-1])
    assert damaged is not None and damaged.read() == jpeg()[:300]


async def test_an_edited_question_comes_as_edited_message(world: tuple[Emulator, Bot, str, Person]) -> None:
    """When a user edits a text or caption, the bot receives an edited_message update."""
    _, bot, _, ada = world
    await ada.edits(await ada.sends("frist"), "first")
    await ada.edits(await ada.sends(photo=jpeg(), caption="waht?"), "what?")
    edited = [update.edited_message for update in await updates_of(bot) if update.edited_message]
    assert [(message.text, message.caption) for message in edited] == [("first", None), (None, "what?")]


async def test_a_reply_carries_what_it_replies_to(world: tuple[Emulator, Bot, str, Person]) -> None:
    """A reply includes the message that it replies to, whether a user or the bot sent the reply."""
    _, bot, _, ada = world
    first = await ada.sends("first")
    await ada.sends("second", reply_to=first["message_id"])
    message = (await updates_of(bot))[-1].message
    assert message is not None and message.reply_to_message is not None
    assert message.reply_to_message.text == "first"
    answer = await message.reply("third")
    assert answer.reply_to_message is not None and answer.reply_to_message.text == "second"


async def test_a_button_must_be_there_to_be_pressed(world: tuple[Emulator, Bot, str, Person]) -> None:
    """When a user presses a button, the bot receives the button's data and the message it belongs to.

    A button that has been removed cannot be pressed.
    """
    _, bot, _, ada = world
    await ada.sends("hello")
    sent = await bot.send_message(ADA, "rate me", reply_markup=THUMBS)
    (message,) = await ada.bot_messages()
    await ada.taps(DOWN, message)
    query = (await updates_of(bot))[-1].callback_query
    assert query is not None and query.message is not None
    assert (query.data, query.from_user.id, query.message.message_id) == (f"rate:{DOWN}", ADA, sent.message_id)
    await sent.edit_reply_markup()
    with pytest.raises(AssertionError, match="no button"):
        await ada.taps(DOWN, message)


async def test_in_groups_the_bot_sees_what_privacy_mode_lets_through(
    world: tuple[Emulator, Bot, str, Person],
) -> None:
    """In a group, the bot sees only commands, mentions and replies, unless it is an administrator."""
    emulator, bot, url, ada = world
    async with Person(url, 8, "Bo") as bo:
        group = emulator.add_group("friends", [ADA, bo.id])
        sent = await bot.send_message(group.id, "hello all")
        await ada.sends("small talk", chat=group.id)
        await ada.sends("/help", chat=group.id)
        await ada.sends("/help@other_bot", chat=group.id)
        await bo.sends("@thumbtune_bot what is it?", chat=group.id)
        await bo.sends("and this?", chat=group.id, reply_to=sent.message_id)
        seen = [update.message.text for update in await updates_of(bot) if update.message]
        assert seen == ["/help", "@thumbtune_bot what is it?", "and this?"]
        group.bot_status = "administrator"
        await bo.sends("small talk", chat=group.id)
        assert len(await updates_of(bot)) == 1
        assert "hello all" in {message.get("text") for message in await bo.messages(group.id)}
    async with Person(url, 9, "Eve") as eve:
        with pytest.raises(AssertionError, match="chat not found"):
            await eve.messages(group.id)


async def test_the_menu_shows_the_narrowest_commands(world: tuple[Emulator, Bot, str, Person]) -> None:
    """The menu shows the commands with the narrowest scope, preferably in the user's language.

    From narrow to wide, the scopes are one chat, all private chats and all chats. When commands are deleted,
    the menu falls back to the next wider scope.
    """
    _, bot, url, ada = world
    await ada.sends("/start")

    async def menu() -> list[str]:
        async with session.get(f"/people/{ADA}/commands") as answer:
            return [command["description"] for command in (await answer.json())["commands"]]

    async with aiohttp.ClientSession(url) as session:
        assert await menu() == []
        await bot.set_my_commands([BotCommand(command="help", description="for all")])
        assert await menu() == ["for all"]
        private, mine = BotCommandScopeAllPrivateChats(), BotCommandScopeChat(chat_id=ADA)
        await bot.set_my_commands([BotCommand(command="help", description="帮助")], private, language_code="zh")
        assert await menu() == ["帮助"]
        await bot.set_my_commands([BotCommand(command="retrain", description="mine")], mine)
        assert await menu() == ["mine"]
        await bot.delete_my_commands(mine)
        assert await menu() == ["帮助"]


async def test_events_resume_where_a_reader_left_off(world: tuple[Emulator, Bot, str, Person]) -> None:
    """An event stream opened with the last event number read yields all later events in the user's own chats."""
    emulator, bot, _, ada = world
    await ada.sends("one")
    last = emulator.world.events.last
    await bot.send_chat_action(ADA, "typing")
    sent = await bot.send_message(ADA, "…")
    emulator.add_person(99, "Mallory")
    emulator.people.writes(99, "elsewhere")
    await sent.edit_text("done")
    await sent.delete()
    kinds = []
    async for event in ada.events(last):
        kinds.append(event["kind"])
        if event["kind"] == "deleted":
            break
    assert [kind for kind in kinds if kind != "person"] == ["action", "message", "edited", "deleted"]


async def test_other_sites_have_no_say(world: tuple[Emulator, Bot, str, Person]) -> None:
    """A request from a web page of another origin is refused, and one from the chat page is accepted."""
    _, _, url, _ = world
    async with aiohttp.ClientSession(url) as session:
        for origin, status in (("https://evil.example", 403), (url, 200)):
            body = {"text": "/retrain"}
            async with session.post(f"/people/{ADA}/messages", json=body, headers={"Origin": origin}) as answer:
                assert answer.status == status


async def test_wrong_requests_are_told_so(world: tuple[Emulator, Bot, str, Person]) -> None:
    """Requests with unknown users, empty texts, missing fields or malformed bodies get HTTP status 400."""
    _, _, url, _ = world
    async with aiohttp.ClientSession(url) as session:
        for path, body, reason in (
            ("/people/555/messages", {"text": "x"}, "user not found"),
            (f"/people/{ADA}/messages", {"text": " "}, "message text is empty"),
            (f"/people/{ADA}/press", {"message": 1, "data": "x"}, "the message has no such button"),
            (f"/people/{ADA}/press", {}, "wrong parameters: 'message'"),
            ("/people/sample-votes", {}, "there are no sample conversations here"),
        ):
            async with session.post(path, json=body) as answer:
                assert (answer.status, (await answer.json())["description"]) == (400, f"Bad Request: {reason}")
        async with session.post("/people", data=b"no json") as answer:
            assert answer.status == 400


async def test_the_page_and_its_pictures_are_served(world: tuple[Emulator, Bot, str, Person]) -> None:
    """The emulator serves the chat page, its files, the sample pictures and sent photos.

    Uploaded files are served in a sandbox, so that they never run as pages.
    """
    _, _, url, ada = world
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/") as answer:
            page = await answer.text()
        assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page
        names = [part.split('"')[0] for part in page.split('"/page/')[1:]]
        assert names
        for name in names:
            async with session.get(f"/page/{name}") as answer:
                assert answer.status == 200
        async with session.get("/samples") as answer:
            samples = (await answer.json())["samples"]
        assert [each["sticker"] for each in samples] == [False, True]
        for sample, kind, data in zip(samples, ("jpeg", "webp"), (jpeg(112, 112), STICKER), strict=True):
            async with session.get(sample["url"]) as answer:
                assert (answer.content_type, await answer.read()) == (f"image/{kind}", data)
        sent = await ada.sends(document=b"<script>alert(1)</script>", file_name="x.html", media_type="text/html")
        async with session.get(f"/people/files/{sent['document']['file_id']}") as answer:
            assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_sample_people_vote_by_taste() -> None:
    """Each sample user sends pictures, asks a follow-up question and rates every answer by the given rule."""
    rounds: list[int] = []

    def conversations(number: int) -> list[SampleConversation]:
        rounds.append(number)
        return [SampleConversation(jpeg(64, 64, "red"), "what?", f"and {i}?") for i in range(6)]

    emulator = Emulator(conversations=conversations, likes=lambda text: text.endswith(("2?", "4?", "5?")))
    async with running(emulator) as (url, bot), echo_bot(bot), aiohttp.ClientSession(url) as session:
        states = []
        async with session.post("/people/sample-votes", json={}) as answer:
            assert (await answer.json())["total"] == 12
        async with session.post("/people/sample-votes", json={}) as answer:
            assert answer.status == 409
        async for event in emulator.world.events.follow(0, lambda event: event["kind"] == "votes"):
            states.append(event)
            if not event["running"]:
                break
        async with session.get("/people") as answer:
            final = (await answer.json())["sample_votes"]
    assert final.pop("last") > 0
    assert final == {"running": False, "done": 12, "total": 12, "ups": 3, "downs": 9, "error": ""}
    assert [state["done"] for state in states] == [*range(13), 12]
    assert rounds == [0]
    assert emulator.calls["answercallbackquery"] == 12
    presses = [user for user in emulator.world.users.values() if user.sample]
    assert len(presses) == 4


async def test_sample_people_vote_by_coin() -> None:
    """On request, sample users vote at random instead of by the given rule."""
    emulator = Emulator(
        conversations=lambda _: [SampleConversation(jpeg(64, 64, "red"), "what?", "and?") for _ in range(12)],
        likes=lambda _: True,
    )
    async with running(emulator) as (url, bot), echo_bot(bot), aiohttp.ClientSession(url) as session:
        async with session.post("/people/sample-votes", json={"coin": True}) as answer:
            assert (await answer.json())["total"] == 24
        async for event in emulator.world.events.follow(0, lambda event: event["kind"] == "votes"):
            if not event["running"]:
                break
    assert 4 <= emulator.voters.state["ups"] <= 20


async def test_person_tells_a_stop_button_from_an_answer(world: tuple[Emulator, Bot, str, Person]) -> None:
    """`Person.answer` does not treat a message with a ⏹ button as final, but waits for an edit without it."""
    _, bot, _, ada = world
    await ada.sends("hello")
    stop = THUMBS.model_copy(deep=True)
    stop.inline_keyboard = [[stop.inline_keyboard[0][0].model_copy(update={"text": "⏹ Stop"})]]
    sent = await bot.send_message(ADA, "so far", reply_markup=stop)
    with pytest.raises(TimeoutError):
        await ada.answer(seconds=0.5, quiet=0.1)
    await sent.edit_text("the end", reply_markup=THUMBS)
    answer = await ada.answer()
    assert (answer["text"], button(answer, UP)) == ("the end", f"rate:{UP}")
