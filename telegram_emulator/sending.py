"""Bot API methods that send texts, photos, documents and chat actions.

Each method takes the emulator's state and a call's parameters, and returns the JSON result or raises
`BotApiError`. As in Telegram, the content is checked before the chat, and flood control is checked last,
so that a call refused for another reason does not count towards the limits.
"""

from __future__ import annotations

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.entities import MAX_CAPTION, MAX_TEXT, formatted, units
from telegram_emulator.parameters import Parameters, Upload
from telegram_emulator.reply_markup import check_place, inline_keyboard
from telegram_emulator.world import World

_ACTIONS = frozenset({
    "typing", "upload_photo", "record_video", "upload_video", "record_voice", "upload_voice", "upload_document",
    "choose_sticker", "find_location", "record_video_note", "upload_video_note",
})  # fmt: skip


def checked_text(parameters: Parameters) -> tuple[str, list[Json]]:
    """Return the `text` parameter of a call and its entities.

    Raises:
        BotApiError: The text is empty or too long, an entity is invalid, or `parse_mode` is set.
    """
    if not parameters.text("text"):
        raise api_error("message text is empty")
    text, entities = _formatted(parameters, "text", "entities")
    if not text:
        raise api_error("text must be non-empty")
    if units(text) > MAX_TEXT:
        raise api_error("message is too long")
    return text, entities


def checked_caption(parameters: Parameters) -> tuple[str, list[Json]]:
    """Return the `caption` parameter of a call and its entities; both may be empty.

    Raises:
        BotApiError: The caption is too long, an entity is invalid, or `parse_mode` is set.
    """
    caption, entities = _formatted(parameters, "caption", "caption_entities")
    if units(caption) > MAX_CAPTION:
        raise api_error("message caption is too long")
    return caption, entities


def _formatted(parameters: Parameters, name: str, entities: str) -> tuple[str, list[Json]]:
    if parameters.text("parse_mode"):
        raise api_error("parse_mode is not supported by the emulator: send entities")
    return formatted(parameters.text(name), parameters.decoded(entities, entities.replace("_", " ")))


def _send(world: World, parameters: Parameters, **content: object) -> Json:
    """Check the chat, reply, buttons and flood control, then post a message from the bot and return it."""
    keyboard = inline_keyboard(parameters)
    chat = world.chat_for_bot(parameters.text("chat_id"))
    check_place(keyboard, chat.kind)
    given = Parameters(parameters.object("reply_parameters", "reply parameters"))
    target = given.integer("message_id")
    reply = world.reply_to(chat, target) if target else None
    if target and reply is None and not given.boolean("allow_sending_without_reply"):
        raise api_error("message to be replied not found")
    # A reply goes to the topic of the message it replies to.
    topic = world.in_topic(chat, parameters.integer("message_thread_id") or (reply or {}).get("message_thread_id", 0))
    world.flood.charge(chat.id, group=chat.kind != "private")
    message = world.compose(chat, world.bot, reply_to_message=reply, reply_markup=keyboard, **topic, **content)
    chat.counts.sends += 1
    world.post(chat, message)
    markup = parameters.decoded("reply_markup", "reply keyboard markup")
    if markup and markup.get("force_reply"):  # apps open the input field as a reply to the message
        world.events.publish("force_reply", chat.id, message_id=message["message_id"])
    return message


def _send_ephemeral(world: World, parameters: Parameters, receiver: int, **content: object) -> Json:
    """Send a message that only one member of a group can see; the bot must be an administrator.

    See core.telegram.org/bots/api#ephemeral-messages-and-commands. The texts of the errors are not documented.
    """
    chat = world.chat_for_bot(parameters.text("chat_id"))
    if chat.bot_status != "administrator":
        raise api_error("CHAT_ADMIN_REQUIRED")
    if receiver not in chat.members:
        raise api_error("PARTICIPANT_ID_INVALID")
    world.flood.charge(chat.id, group=True)
    topic = world.in_topic(chat, parameters.integer("message_thread_id"))
    message = world.compose(chat, world.bot, **topic, **content)
    seen = {"message_id": 0, "ephemeral_message_id": message["message_id"]}
    message = {**message, **seen, "receiver_user": world.users[receiver].as_user()}
    chat.ephemeral.append(message)
    world.events.publish("ephemeral", chat.id, person=receiver, message=message)
    return message


def _uploaded(parameters: Parameters, name: str) -> Upload:
    upload = parameters.upload(name)
    if upload is None:
        raise api_error(f"there is no {name} in the request")
    return upload


async def send_message(world: World, parameters: Parameters) -> Json:
    """Handle a sendMessage call and return the sent message."""
    text, entities = checked_text(parameters)
    preview = parameters.object("link_preview_options", "link preview options")
    receiver = Parameters(parameters.object("ephemeral_message_parameters", "ephemeral message parameters"))
    if world.knows_ephemeral and receiver.integer("receiver_user_id"):
        return _send_ephemeral(world, parameters, receiver.integer("receiver_user_id"), text=text, entities=entities)
    return _send(world, parameters, text=text, entities=entities, link_preview_options=preview)


async def send_photo(world: World, parameters: Parameters) -> Json:
    """Handle a sendPhoto call with an uploaded photo and return the sent message."""
    caption, entities = checked_caption(parameters)
    photo = await world.files.add_photo(_uploaded(parameters, "photo").data)
    return _send(world, parameters, photo=photo, caption=caption, caption_entities=entities)


async def send_document(world: World, parameters: Parameters) -> Json:
    """Handle a sendDocument call with an uploaded file and return the sent message."""
    caption, entities = checked_caption(parameters)
    upload = _uploaded(parameters, "document")
    document = world.files.add_document(upload.data, upload.name, upload.media_type)
    return _send(world, parameters, document=document, caption=caption, caption_entities=entities)


async def answer_guest_query(world: World, parameters: Parameters) -> Json:
    """Handle an answerGuestQuery call with an article, and return the ID of the message.

    Each query can be answered once.
    """
    result = parameters.object("result", "inline query result")
    if result.get("type") != "article" or not result.get("id") or not result.get("title"):
        raise api_error("the emulator accepts only articles with an id and a title")
    content = Parameters(Parameters(result).object("input_message_content", "input message content"))
    text, entities = _formatted(content, "message_text", "entities")
    if not text:
        raise api_error("message text is empty")
    if units(text) > MAX_TEXT:
        raise api_error("message is too long")
    keyboard = inline_keyboard(Parameters(result))
    question = world.guest_queries.get(parameters.text("guest_query_id"))
    if question is None:
        raise api_error("query is too old and response timeout expired or query ID is invalid")
    chat = world.chats[question["chat"]["id"]]
    world.flood.charge(chat.id, group=chat.kind != "private")
    del world.guest_queries[parameters.text("guest_query_id")]
    caller = {"guest_bot_caller_user": question["from"]}
    message = world.compose(chat, world.bot, text=text, entities=entities, reply_markup=keyboard, **caller)
    chat.counts.sends += 1
    inline = f"inline-{message['message_id']}"
    world.inline[inline] = chat.id, message["message_id"]
    world.post(chat, message)
    return {"inline_message_id": inline}


async def send_chat_action(world: World, parameters: Parameters) -> bool:
    """Handle a sendChatAction call.

    The chat page shows the action for five seconds or until the next message.
    """
    action = parameters.text("action")
    if action not in _ACTIONS:
        raise api_error("wrong parameter action in request")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    world.in_topic(chat, parameters.integer("message_thread_id"))
    world.events.publish("action", chat.id, action=action)
    return True
