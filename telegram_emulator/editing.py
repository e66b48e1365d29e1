"""Bot API methods that change sent messages or answer a pressed button.

Each function takes the emulator's state and the parameters of a call, returns the JSON result, and
raises `BotApiError` if the call fails.
"""

from __future__ import annotations

import time

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.parameters import Parameters
from telegram_emulator.reply_markup import check_place, inline_keyboard
from telegram_emulator.sending import checked_caption, checked_text
from telegram_emulator.world import EmulatedChat, World

CALLBACK_SECONDS = 60.0  # how long a callback query can be answered
_MAX_TOAST = 200  # characters in the answer to a callback query


async def edit_message_text(world: World, parameters: Parameters) -> Json | bool:
    """Handle a call to `editMessageText`."""
    text, entities = checked_text(parameters)
    preview = parameters.object("link_preview_options", "link preview options")
    chat, message = _own_message(world, parameters)
    if "text" not in message:
        raise api_error("there is no text in the message to edit")
    return _replace(world, parameters, chat, message, text=text, entities=entities, link_preview_options=preview)


async def edit_message_caption(world: World, parameters: Parameters) -> Json | bool:
    """Handle a call to `editMessageCaption`."""
    caption, entities = checked_caption(parameters)
    chat, message = _own_message(world, parameters)
    if "text" in message:
        raise api_error("there is no caption in the message to edit")
    return _replace(world, parameters, chat, message, caption=caption, caption_entities=entities)


async def edit_message_media(world: World, parameters: Parameters) -> Json | bool:
    """Handle a call to `editMessageMedia` with an uploaded photo."""
    item = parameters.object("media", "input media")
    if not item:
        raise api_error("there is no media in the request")
    upload = parameters.attached(str(item.get("media", "")))
    if item.get("type") != "photo" or upload is None:
        raise api_error("the emulator accepts only uploaded photos")
    chat, message = _own_message(world, parameters)
    caption, entities = checked_caption(Parameters(item))
    previous: Json = dict.fromkeys(("document", "text", "entities", "link_preview_options"))
    photo = await world.files.add_photo(upload.data)
    content = {**previous, "photo": photo, "caption": caption, "caption_entities": entities}
    return _replace(world, parameters, chat, message, **content)


async def edit_message_reply_markup(world: World, parameters: Parameters) -> Json | bool:
    """Handle a call to `editMessageReplyMarkup`."""
    chat, message = _own_message(world, parameters)
    return _replace(world, parameters, chat, message)


def _own_message(world: World, parameters: Parameters) -> tuple[EmulatedChat, Json]:
    if inline := parameters.text("inline_message_id"):
        if inline not in world.inline:
            raise api_error("MESSAGE_ID_INVALID")
        number, message_id = world.inline[inline]
        return world.chats[number], world.chats[number].messages[message_id]
    if not parameters.text("chat_id") and not parameters.integer("message_id"):
        raise api_error("message identifier is not specified")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    message = chat.messages.get(parameters.integer("message_id"))
    if message is None:
        raise api_error("message to edit not found")
    if message["from"]["id"] != world.bot["id"]:
        raise api_error("message can't be edited")
    return chat, message


def _replace(world: World, parameters: Parameters, chat: EmulatedChat, message: Json, **changes: object) -> Json | bool:
    """Apply `changes` to a message and return the edited message, or True if the bot sent it as a guest.

    As in Telegram, a call without `reply_markup` removes the buttons.
    """
    keyboard = inline_keyboard(parameters)
    check_place(keyboard, chat.kind)
    edited = {**message, **changes, "reply_markup": keyboard}
    edited = {name: value for name, value in edited.items() if value not in (None, [], {}, "")}
    if edited == message:
        raise api_error(
            "message is not modified: specified new message content and reply markup are exactly the same "
            "as a current content and reply markup of the message"
        )
    world.flood.charge(chat.id, group=chat.kind != "private")
    chat.counts.edits += 1
    replaced = world.replace(chat, {**edited, "edit_date": int(time.time())})
    return True if parameters.text("inline_message_id") else replaced


async def delete_message(world: World, parameters: Parameters) -> bool:
    """Handle a call to `deleteMessage`.

    In private chats, and as a group administrator, the bot can delete users' messages too.
    """
    chat = world.chat_for_bot(parameters.text("chat_id"))
    message = chat.messages.get(parameters.integer("message_id"))
    if message is None:
        raise api_error("message to delete not found")
    may_delete_all = chat.kind == "private" or chat.bot_status == "administrator"
    if not may_delete_all and message["from"]["id"] != world.bot["id"]:
        raise api_error("message can't be deleted")
    chat.counts.deletes += 1
    world.remove(chat, message["message_id"])
    return True


async def answer_callback_query(world: World, parameters: Parameters) -> bool:
    """Handle a call to `answerCallbackQuery`.

    Each button press can be answered once, within `CALLBACK_SECONDS`.
    """
    query = world.callbacks.pop(parameters.text("callback_query_id"), None)
    if query is None or world.flood.clock() - query.pressed > CALLBACK_SECONDS:
        raise api_error("query is too old and response timeout expired or query ID is invalid")
    text = parameters.text("text")
    if len(text) > _MAX_TOAST:
        world.callbacks[query.id] = query
        raise api_error("MESSAGE_TOO_LONG")
    world.events.publish("toast", query.chat, person=query.person, message_id=query.message, query=query.id, text=text)
    return True
