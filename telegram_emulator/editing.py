"""The Bot API methods that change what was sent, and those that answer people: edits, deletions, reactions, queries.

Each takes the world and a call's parameters, returns the JSON result and raises `Refused`.
"""

from __future__ import annotations

import time

from telegram_emulator.keyboards import inline_keyboard
from telegram_emulator.parameters import Parameters
from telegram_emulator.refusals import Json, not_modified, refused
from telegram_emulator.sending import caption_of, media_content, message_text
from telegram_emulator.world import Chat, World

CALLBACK_SECONDS = 60.0  # how long a pressed button waits for its answer
_MAX_TOAST = 200  # characters of an answer to a pressed button


async def edit_message_text(world: World, parameters: Parameters) -> Json:
    """editMessageText."""
    text, entities = message_text(world, parameters)
    preview = parameters.object("link_preview_options", "link preview options")
    chat, message = _own_message(world, parameters)
    if "text" not in message:
        raise refused("there is no text in the message to edit")
    return _replace(world, parameters, chat, message, text=text, entities=entities, link_preview_options=preview)


async def edit_message_caption(world: World, parameters: Parameters) -> Json:
    """editMessageCaption."""
    caption, entities = caption_of(world, parameters)
    chat, message = _own_message(world, parameters)
    if "photo" not in message and "document" not in message:
        raise refused("there is no caption in the message to edit")
    return _replace(world, parameters, chat, message, caption=caption, caption_entities=entities)


async def edit_message_media(world: World, parameters: Parameters) -> Json:
    """editMessageMedia with a photo or a document."""
    item = parameters.object("media", "input media")
    if not item:
        raise refused("there is no media in the request")
    chat, message = _own_message(world, parameters)
    nothing: Json = dict.fromkeys(("photo", "document", "text", "entities", "link_preview_options"))
    content = await media_content(world, parameters, item)
    return _replace(world, parameters, chat, message, **{**nothing, **content})


async def edit_message_reply_markup(world: World, parameters: Parameters) -> Json:
    """editMessageReplyMarkup."""
    chat, message = _own_message(world, parameters)
    return _replace(world, parameters, chat, message)


def _own_message(world: World, parameters: Parameters) -> tuple[Chat, Json]:
    if not parameters.text("chat_id") and not parameters.integer("message_id"):
        raise refused("message identifier is not specified")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    message = chat.messages.get(parameters.integer("message_id"))
    if message is None:
        raise refused("message to edit not found")
    if message["from"]["id"] != world.bot["id"]:
        raise refused("message can't be edited")
    return chat, message


def _replace(world: World, parameters: Parameters, chat: Chat, message: Json, **changes: object) -> Json:
    """Apply an edit. A call without `reply_markup` takes the buttons away, as Telegram does."""
    wanted = {**message, **changes, "reply_markup": inline_keyboard(parameters)}
    wanted = {name: value for name, value in wanted.items() if value not in (None, [], {}, "")}
    if wanted == message:
        raise not_modified()
    world.flood.charge(chat.id, group=chat.kind != "private")
    chat.counts.edits += 1
    return world.replace(chat, {**wanted, "edit_date": int(time.time())})


async def delete_message(world: World, parameters: Parameters) -> bool:
    """deleteMessage: the bot's own ones, and in private chats the person's too."""
    chat, found = _to_delete(world, parameters, [parameters.integer("message_id")])
    if not found:
        raise refused("message to delete not found")
    _delete(world, chat, found)
    return True


async def delete_messages(world: World, parameters: Parameters) -> bool:
    """deleteMessages: those that are not there are passed over."""
    numbers = parameters.decoded("message_ids", "message identifiers")
    if not isinstance(numbers, list) or not numbers or not all(isinstance(number, int) for number in numbers):
        raise refused("message identifiers are not specified")
    _delete(world, *_to_delete(world, parameters, numbers))
    return True


def _to_delete(world: World, parameters: Parameters, numbers: list[int]) -> tuple[Chat, list[Json]]:
    chat = world.chat_for_bot(parameters.text("chat_id"))
    return chat, [chat.messages[number] for number in numbers if number in chat.messages]


def _delete(world: World, chat: Chat, messages: list[Json]) -> None:
    may_all = chat.kind == "private" or chat.bot_status == "administrator"
    if not all(may_all or message["from"]["id"] == world.bot["id"] for message in messages):
        raise refused("message can't be deleted")
    for message in messages:
        chat.counts.deletes += 1
        world.remove(chat, message["message_id"])


async def set_message_reaction(world: World, parameters: Parameters) -> bool:
    """setMessageReaction: at most one emoji of the bot's; none takes it back."""
    reactions = parameters.objects("reaction", "reaction types")
    if len(reactions) > 1:
        raise refused("REACTIONS_TOO_MANY")
    if any(reaction.get("type") != "emoji" or not reaction.get("emoji") for reaction in reactions):
        raise refused("REACTION_INVALID")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    number = parameters.integer("message_id")
    if number not in chat.messages:
        raise refused("message to react not found")
    emoji = reactions[0]["emoji"] if reactions else ""
    world.events.publish("reaction", chat.id, message_id=number, person=world.bot["id"], emoji=emoji)
    return True


async def answer_callback_query(world: World, parameters: Parameters) -> bool:
    """answerCallbackQuery: once for each pressed button, and soon."""
    query = world.callbacks.pop(parameters.text("callback_query_id"), None)
    if query is None or world.flood.clock() - query.asked > CALLBACK_SECONDS:
        raise refused("query is too old and response timeout expired or query ID is invalid")
    text = parameters.text("text")
    if len(text) > _MAX_TOAST:
        world.callbacks[query.id] = query
        raise refused("MESSAGE_TOO_LONG")
    world.events.publish(
        "toast", query.chat, person=query.person, query=query.id, text=text, alert=parameters.boolean("show_alert")
    )
    return True
