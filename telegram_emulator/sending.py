"""The Bot API's sending methods: text, photos, documents, albums and chat actions.

Each takes the world and a call's parameters, returns the JSON result and raises `Refused`. Content is checked before
the chat, as Telegram does it, and flood control comes last: a refused call costs nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from telegram_emulator.entities import MAX_CAPTION, MAX_TEXT, formatted, units
from telegram_emulator.keyboards import inline_keyboard
from telegram_emulator.parameters import Parameters, Upload
from telegram_emulator.refusals import Json, refused
from telegram_emulator.world import Chat, World

_ALBUM = 10
_ACTIONS = frozenset({
    "typing", "upload_photo", "record_video", "upload_video", "record_voice", "upload_voice", "upload_document",
    "choose_sticker", "find_location", "record_video_note", "upload_video_note",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every kind of message has beside its content."""

    chat: Chat
    reply: Json | None
    keyboard: Json | None
    topic: Json
    forces_reply: bool = False


def message_text(world: World, parameters: Parameters) -> tuple[str, list[Json]]:
    """The `text` of a call with its entities, checked. Raises `Refused`."""
    raw = parameters.text("text")
    if not raw:
        raise refused("message text is empty")
    text, entities = formatted(raw, parameters.text("parse_mode"), parameters.decoded("entities", "entities"))
    if not text:
        raise refused("text must be non-empty")
    if units(text) > MAX_TEXT:
        raise refused("message is too long")
    return text, with_users(world, entities)


def caption_of(world: World, parameters: Parameters) -> tuple[str, list[Json]]:
    """The `caption` of a call with its entities, checked; both may be empty. Raises `Refused`."""
    entities = parameters.decoded("caption_entities", "caption entities")
    caption, found = formatted(parameters.text("caption"), parameters.text("parse_mode"), entities)
    if units(caption) > MAX_CAPTION:
        raise refused("message caption is too long")
    return caption, with_users(world, found)


def with_users(world: World, entities: list[Json]) -> list[Json]:
    """Mentions of users by id get the user they mention; those of strangers are dropped."""
    result = []
    for entity in entities:
        if entity["type"] == "text_mention":
            given = entity.pop("user", None) or {}
            user = world.users.get(entity.pop("user_id", given.get("id", 0)))
            if user is None:
                continue
            entity["user"] = user.as_user()
        result.append(entity)
    return result


def envelope(world: World, parameters: Parameters) -> Envelope:
    """Chat, reply and keyboard of a message to be sent. Raises `Refused`."""
    keyboard = inline_keyboard(parameters)
    chat = world.chat_for_bot(parameters.text("chat_id"))
    given = Parameters(parameters.object("reply_parameters", "reply parameters"))
    target = given.integer("message_id") or parameters.integer("reply_to_message_id")
    reply = world.reply_to(chat, target) if target else None
    lenient = given.boolean("allow_sending_without_reply") or parameters.boolean("allow_sending_without_reply")
    if target and reply is None and not lenient:
        raise refused("message to be replied not found")
    # A reply goes to the topic of what it replies to.
    topic = parameters.integer("message_thread_id") or (reply or {}).get("message_thread_id", 0)
    markup = parameters.decoded("reply_markup", "reply keyboard markup")
    forces_reply = isinstance(markup, dict) and bool(markup.get("force_reply"))
    return Envelope(chat, reply, keyboard, world.in_topic(chat, topic), forces_reply)


def send(world: World, to: Envelope, contents: Sequence[Json]) -> list[Json]:
    """Pass flood control, compose the messages and show them. Raises `Refused` (429)."""
    chat = to.chat
    world.flood.charge(chat.id, group=chat.kind != "private", count=len(contents))
    sent = []
    for content in contents:
        message = world.compose(
            chat, world.bot, reply_to_message=to.reply, reply_markup=to.keyboard, **to.topic, **content
        )
        chat.counts.sends += 1
        sent.append(world.post(chat, message))
        if to.forces_reply:  # apps open the line to write in as a reply to it
            world.events.publish("force_reply", chat.id, message_id=message["message_id"])
    return sent


async def send_message(world: World, parameters: Parameters) -> Json:
    """sendMessage."""
    text, entities = message_text(world, parameters)
    preview = parameters.object("link_preview_options", "link preview options")
    to = envelope(world, parameters)
    return send(world, to, [{"text": text, "entities": entities, "link_preview_options": preview}])[0]


async def send_photo(world: World, parameters: Parameters) -> Json:
    """sendPhoto, with an upload or the id of a photo that is here already."""
    caption, entities = caption_of(world, parameters)
    to = envelope(world, parameters)
    photo = await photo_of(world, parameters.upload("photo"), parameters.text("photo"))
    return send(world, to, [{"photo": photo, "caption": caption, "caption_entities": entities}])[0]


async def send_document(world: World, parameters: Parameters) -> Json:
    """sendDocument, with an upload or the id of a document that is here already."""
    caption, entities = caption_of(world, parameters)
    to = envelope(world, parameters)
    document = document_of(world, parameters.upload("document"), parameters.text("document"))
    return send(world, to, [{"document": document, "caption": caption, "caption_entities": entities}])[0]


async def send_media_group(world: World, parameters: Parameters) -> list[Json]:
    """sendMediaGroup with two to ten photos, or two to ten documents."""
    media = parameters.objects("media", "media")
    if not media:
        raise refused("there are no messages to send")
    if len(media) > _ALBUM:
        raise refused("too many messages to send as an album")
    to = envelope(world, parameters)
    if len({item.get("type") for item in media}) > 1:
        raise refused("document can't be mixed with other media types")
    group = str(secrets.randbits(62))
    contents = [{**await media_content(world, parameters, item), "media_group_id": group} for item in media]
    return send(world, to, contents)


async def media_content(world: World, parameters: Parameters, item: Json) -> Json:
    """The content of a message out of a Bot API `InputMedia`. Raises `Refused`."""
    reference = str(item.get("media", ""))
    upload = parameters.attached(reference)
    if item.get("type") == "photo":
        content: Json = {"photo": await photo_of(world, upload, reference)}
    elif item.get("type") == "document":
        content = {"document": document_of(world, upload, reference)}
    else:
        raise refused("type of the media is not supported by the emulator")
    caption, entities = caption_of(world, Parameters(item))
    return {**content, "caption": caption, "caption_entities": entities}


async def photo_of(world: World, upload: Upload | None, reference: str) -> list[Json]:
    """The sizes of the uploaded photo, or of the one that `reference` names. Raises `Refused`."""
    if upload is not None:
        return await world.files.add_photo(upload.data)
    again = world.files.photo_again(reference)
    if again is None:
        raise _unknown_reference("photo", reference)
    return again


def document_of(world: World, upload: Upload | None, reference: str) -> Json:
    """The uploaded document, or the one that `reference` names. Raises `Refused`."""
    if upload is not None:
        return world.files.add_document(upload.data, upload.name, upload.media_type)
    file = world.files.by_id(reference)
    if file is None:
        raise _unknown_reference("document", reference)
    size = len(file.data)
    described = {"file_id": file.id, "file_unique_id": file.unique_id, "file_size": size}
    return {"file_name": file.name, "mime_type": file.media_type, **described}


def _unknown_reference(kind: str, reference: str) -> Exception:
    if not reference:
        return refused(f"there is no {kind} in the request")
    if reference.startswith(("http://", "https://")):  # the emulator reaches nothing outside
        return refused("failed to get HTTP URL content")
    return refused("wrong remote file identifier specified: Wrong string length")


async def send_chat_action(world: World, parameters: Parameters) -> bool:
    """sendChatAction. People see it for five seconds or until the next message."""
    action = parameters.text("action")
    if action not in _ACTIONS:
        raise refused("wrong parameter action in request")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    world.in_topic(chat, parameters.integer("message_thread_id"))
    world.events.publish("action", chat.id, action=action)
    return True
