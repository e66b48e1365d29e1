"""Pictures that are forwarded, sent beside a video, quoted from another chat, or replaced by an edit.

Messages that the emulator cannot send are put into the inbox in the format of the Bot API.
"""

from __future__ import annotations

import io
import itertools
import time
from typing import Any

import pytest
from PIL import Image

from tests.inference.test_decoder_worker import dark_corners
from tests.support.chatting import RunningBot, Stage, png
from tests.support.heic import SIDEWAYS, turned
from tests.support.person import Message, Person

NUMBERS = itertools.count(10**9)
VIDEO = {"file_id": "v", "file_unique_id": "v", "width": 640, "height": 360, "duration": 5}
VOICE = {"file_id": "a", "file_unique_id": "a", "duration": 5}


def message(person: Person, **content: Any) -> dict[str, Any]:
    """Return a message from `person` to the bot, in their private chat unless `content` says otherwise."""
    return {
        "message_id": next(NUMBERS),
        "date": int(time.time()),
        "chat": {"id": person.id, "type": "private", "first_name": person.name},
        "from": {"id": person.id, "is_bot": False, "first_name": person.name, "language_code": person.language},
        **content,
    }


async def arrive(bot: RunningBot, *messages: dict[str, Any], kind: str = "message") -> None:
    """Deliver `messages` as updates of the given kind, and wait until the bot has handled them."""
    for each in messages:
        await bot.inbox.accept({"update_id": next(NUMBERS), kind: each})
    await bot.settled()


async def shown_elsewhere(stage: Stage, person: Person, colour: str) -> Message:
    """Put a photo on Telegram's servers by sending it to a group without addressing the bot."""
    group = stage.emulator.add_group("Elsewhere", [person.id]).id
    return await person.sends(photo=png(colour=colour), chat=group)


def asked(bot: RunningBot) -> list[tuple[str, int]]:
    """Return the text and the number of pictures of each question that reached the engine."""
    return [(prompt.turns[-1].text, len(prompt.turns[-1].pictures)) for prompt in bot.engine.prompts]


async def test_a_forwarded_picture_is_asked_about(stage: Stage) -> None:
    """The caption of a forwarded picture is a question from the user who forwarded it."""
    async with stage.bot() as bot, stage.person() as ada:
        photo = (await shown_elsewhere(stage, ada, "red"))["photo"]
        origin = {"type": "hidden_user", "sender_user_name": "Somebody", "date": 1}
        await arrive(bot, message(ada, photo=photo, caption="What is it?", forward_origin=origin))
        assert asked(bot) == [("What is it?", 1)]
        assert (await bot.ledger.exchanges.get(1)).asker == ada.id


async def test_pictures_beside_a_video_are_asked_about(stage: Stage) -> None:
    """If an album begins with a video, the video's caption is a question about the album's photos."""
    async with stage.bot() as bot, stage.person() as ada:
        photo = (await shown_elsewhere(stage, ada, "red"))["photo"]
        await arrive(
            bot,
            message(ada, media_group_id="g", video=VIDEO, caption="Which colour?"),
            message(ada, media_group_id="g", photo=photo),
        )
        assert asked(bot) == [("Which colour?", 1)]
        assert [each["text"] for each in await ada.bot_messages()] == ["Answer 1"]


async def test_a_picture_of_another_chat_can_be_replied_to(stage: Stage) -> None:
    """A reply to a picture in another chat is a question about the picture."""
    async with stage.bot() as bot, stage.person() as ada:
        photo = (await shown_elsewhere(stage, ada, "red"))["photo"]
        origin = {"type": "hidden_user", "sender_user_name": "Somebody", "date": 1}
        reply = {"origin": origin, "photo": photo}
        await arrive(bot, message(ada, text="What about this one?", external_reply=reply))
        assert asked(bot) == [("What about this one?", 1)]


async def test_an_edit_that_replaces_the_picture_is_answered(stage: Stage) -> None:
    """An edit that replaces only the photo is a new question; an edit that changes nothing is not."""
    async with stage.bot() as bot, stage.person() as ada:
        other = (await shown_elsewhere(stage, ada, "red"))["photo"]
        sent = await ada.sends(photo=png(colour="blue"), caption="Which colour?")
        await ada.answer(rated=True)
        edited = {**sent, "edit_date": int(time.time())}
        await arrive(bot, edited, kind="edited_message")
        assert asked(bot) == [("Which colour?", 1)]
        await arrive(bot, {**edited, "photo": other}, kind="edited_message")
        assert asked(bot) == [("Which colour?", 1)] * 2
        first, second = (prompt.turns[-1].pictures[0].sha256 for prompt in bot.engine.prompts)
        assert first != second
        assert [each["text"] for each in await ada.bot_messages()] == ["Answer 2"]
        assert (await bot.ledger.exchanges.get(2)).pictures == (second,)
        await ada.asks("And now?")
        assert bot.engine.prompts[-1].turns[0].pictures[0].sha256 == second


async def test_a_heic_is_seen_upright(stage: Stage) -> None:
    """A rotated HEIC picture reaches the engine upright."""
    async with stage.bot() as bot, stage.person() as ada:
        heic = turned(SIDEWAYS, quarters=3)
        await ada.asks(document=heic, file_name="IMG_0001.HEIC", media_type="image/heic", caption="What is it?")
        seen = Image.open(io.BytesIO(bot.engine.prompts[0].turns[0].pictures[0].data))
        assert (seen.format, seen.size) == ("JPEG", (64, 48))
        assert dark_corners(seen) == ["upper left"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"voice": VOICE}, "can't listen"),
        ({"audio": VOICE}, "can't listen"),
        ({"video": VIDEO}, "videos or animations"),
        ({"video_note": {**VOICE, "length": 240}}, "can't listen"),
        ({"location": {"latitude": 52.5, "longitude": 13.4}}, "can't use that"),
    ],
)
async def test_other_content_is_refused(stage: Stage, content: dict[str, Any], says: str) -> None:
    """Unsupported content is refused in private chats, and in groups only if the message replies to the bot."""
    async with stage.bot() as bot, stage.person() as ada:
        await arrive(bot, message(ada, **content))
        (told,) = await ada.bot_messages()
        assert says in told["text"]
        group = stage.emulator.add_group("Friends", [ada.id], privacy=False)
        there = {"id": group.id, "type": "supergroup", "title": "Friends"}
        me = {**stage.emulator.world.bot}
        ours = {"message_id": 1, "date": 1, "chat": there, "from": me, "text": "An answer."}
        await arrive(
            bot,
            message(ada, chat=there, **content),
            message(ada, chat=there, reply_to_message=ours, animation=VIDEO),
            message(ada, chat=there, reply_to_message=ours, **content),
        )
        (told,) = await ada.bot_messages(group.id)
        assert says in told["text"]
        assert not bot.engine.prompts
