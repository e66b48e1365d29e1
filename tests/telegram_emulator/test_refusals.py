"""The emulator refuses the calls that Telegram refuses, with Telegram's error descriptions.

The tests call the emulator with aiogram over HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest, TelegramForbiddenError, TelegramUnauthorizedError
from aiogram.methods import GetMe, SendMessage, TelegramMethod
from aiogram.types import (
    BotCommand,
    BotCommandScopeChat,
    BufferedInputFile,
    EphemeralMessageParameters,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InlineQueryResultArticle,
    InputTextMessageContent,
    ReplyParameters,
    WebAppInfo,
)

from telegram_emulator import Emulator
from tests.support.emulated import THUMBS, acquainted, client, jpeg, refusal, running

ADA = 7


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator in which a user, Ada, has already written to the bot."""
    emulator = acquainted(ADA)
    yield emulator
    await emulator.stop()


@pytest.fixture
async def url(emulator: Emulator) -> str:
    """Start the emulator and return its URL."""
    return await emulator.start()


@pytest.fixture
async def bot(emulator: Emulator, url: str) -> AsyncIterator[Bot]:
    """An aiogram client for the emulator's bot."""
    async with client(url, emulator.token) as bot:
        yield bot


async def test_an_unknown_token_is_unauthorized(url: str) -> None:
    """A well-formed token that belongs to no bot gets HTTP status 401."""
    async with client(url, "1:nobody") as stranger:
        with refusal("Unauthorized") as raised:
            await stranger.get_me()
        assert isinstance(raised.value, TelegramUnauthorizedError)


async def test_an_unknown_method_is_not_found(bot: Bot) -> None:
    """A call to a method that does not exist gets HTTP status 404."""

    class Fly(GetMe):
        __api_method__ = "fly"

    with refusal("Not Found: method not found"):
        await bot(Fly())


async def test_method_names_are_read_without_regard_to_case(url: str, emulator: Emulator) -> None:
    """Method names are case-insensitive, for GET and POST alike: GETME is getMe."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/bot{emulator.token}/GETME") as answer:
        assert (await answer.json())["result"]["username"] == "thumbtune_bot"


async def test_an_unknown_chat_is_not_found(bot: Bot) -> None:
    """An unknown or empty chat_id gets HTTP status 400, with a different description in each case."""
    with refusal("Bad Request: chat not found"):
        await bot.send_message(8, "hello")
    with refusal("Bad Request: chat_id is empty"):
        await bot.send_message("", "hello")


async def test_a_bot_cannot_write_first(bot: Bot, emulator: Emulator) -> None:
    """A bot cannot write to a user who has never written to it or who has blocked it.

    If the bot has never met the user, the chat is not found. If it knows the user only from a group, or the
    user has blocked it, the call is forbidden.
    """
    emulator.add_person(9, "Bo")
    with refusal("Bad Request: chat not found"):
        await bot.send_message(9, "hello")
    emulator.add_group("friends", [ADA, 9])
    with refusal("Forbidden: bot can't initiate conversation with a user"):
        await bot.send_message(9, "hello")
    emulator.people.blocks(ADA, blocked=True)
    with refusal("Forbidden: bot was blocked by the user") as raised:
        await bot.send_message(ADA, "hello")
    assert isinstance(raised.value, TelegramForbiddenError)


MALFORMED = [
    ("sendMessage", {"reply_markup": "{"}, "can't parse reply keyboard markup JSON object"),
    ("sendMessage", {"reply_markup": "[]"}, "object expected as reply markup"),
    (
        "sendMessage",
        {"reply_markup": '{"inline_keyboard": [1]}'},
        'field "inline_keyboard" of the InlineKeyboardMarkup must be an Array of Arrays',
    ),
    ("sendMessage", {"entities": '[{"type": "bold"}]'}, "can't parse MessageEntity: Can't find field \"offset\""),
    ("sendMessage", {"entities": "[1]"}, "can't parse MessageEntity: expected an Object"),
    (
        "sendMessage",
        {"entities": '[{"type": "bold", "offset": "x", "length": 1}]'},
        "can't parse MessageEntity: offset and length must be of type Integer",
    ),
    ("sendMessage", {"reply_parameters": "[]"}, "object expected as reply parameters"),
    ("sendMessage", {"link_preview_options": "1"}, "object expected as link preview options"),
    ("editMessageMedia", {"media": "{}"}, "there is no media in the request"),
    ("setMyCommands", {"commands": "7"}, "array of objects expected as commands"),
    (
        "setMyCommands",
        {"commands": "[]", "scope": '{"type": "moon"}'},
        "can't parse BotCommandScope: Unsupported type specified",
    ),
    ("getUpdates", {"allowed_updates": "["}, "can't parse allowed updates JSON object"),
]


@pytest.mark.parametrize(("method", "form", "reason"), MALFORMED, ids=[reason[:40] for _, _, reason in MALFORMED])
async def test_malformed_json_is_refused(
    url: str, emulator: Emulator, method: str, form: dict[str, str], reason: str
) -> None:
    """Parameters that are not valid JSON, or do not have the expected structure, are refused."""
    fields = {"chat_id": str(ADA), "text": "x", **form}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/bot{emulator.token}/{method}", data=fields) as answer,
    ):
        assert await answer.json() == {"ok": False, "error_code": 400, "description": f"Bad Request: {reason}"}


async def test_an_edit_must_change_something(bot: Bot, emulator: Emulator) -> None:
    """An edit that changes neither text nor buttons is refused and not counted; new buttons count as a change."""
    reason = (
        "Bad Request: message is not modified: specified new message content and reply markup are exactly the same "
        "as a current content and reply markup of the message"
    )
    sent = await bot.send_message(ADA, "same")
    with refusal(reason):
        await sent.edit_text(" same \n")
    assert emulator.counts(ADA).edits == 0
    await sent.edit_text("same", reply_markup=THUMBS)
    with refusal(reason):
        await sent.edit_reply_markup(reply_markup=THUMBS)
    await sent.edit_reply_markup()
    await sent.edit_text("other")
    assert emulator.counts(ADA).edits == 3


async def test_only_ones_own_messages_that_are_there_can_be_edited(bot: Bot, emulator: Emulator) -> None:
    """A missing message, a user's message and a message without text cannot be edited as text."""
    with refusal("Bad Request: message to edit not found"):
        await bot.edit_message_text("x", chat_id=ADA, message_id=1)
    with refusal("Bad Request: message identifier is not specified"):
        await bot.edit_message_text("x")
    asked = emulator.people.writes(ADA, "hello")
    with refusal("Bad Request: message can't be edited"):
        await bot.edit_message_text("x", chat_id=ADA, message_id=asked["message_id"])
    photo = await bot.send_photo(ADA, BufferedInputFile(jpeg(), "x.jpg"))
    with refusal("Bad Request: there is no text in the message to edit"):
        await photo.edit_text("x")


async def test_a_deleted_message_is_gone(bot: Bot) -> None:
    """A deleted message cannot be deleted again, edited or replied to.

    A reply with `allow_sending_without_reply` is sent as a plain message.
    """
    sent = await bot.send_message(ADA, "x")
    await sent.delete()
    with refusal("Bad Request: message to delete not found"):
        await sent.delete()
    with refusal("Bad Request: message to edit not found"):
        await sent.edit_text("y")
    with refusal("Bad Request: message to be replied not found"):
        await bot.send_message(ADA, "x", reply_parameters=ReplyParameters(message_id=sent.message_id))
    lenient = ReplyParameters(message_id=sent.message_id, allow_sending_without_reply=True)
    assert (await bot.send_message(ADA, "x", reply_parameters=lenient)).reply_to_message is None


async def test_in_groups_others_messages_stay(bot: Bot, emulator: Emulator) -> None:
    """In a group, the bot can delete users' messages only if it is an administrator."""
    group = emulator.add_group("friends", [ADA], kind="group")
    asked = emulator.people.writes(ADA, "/hello", chat=group.id)
    with refusal("Bad Request: message can't be deleted"):
        await bot.delete_message(group.id, asked["message_id"])
    group.bot_status = "administrator"
    assert await bot.delete_message(group.id, asked["message_id"])
    group.bot_status = "kicked"
    with refusal("Forbidden: bot was kicked from the group chat"):
        await bot.send_message(group.id, "x")


async def test_a_mini_app_opens_in_private_and_by_https(bot: Bot, emulator: Emulator) -> None:
    """A button that opens a Mini App needs an https address and a private chat, in a message and in an edit of it."""

    def button(url: str) -> InlineKeyboardMarkup:
        app = InlineKeyboardButton(text="Open", web_app=WebAppInfo(url=url))
        return InlineKeyboardMarkup(inline_keyboard=[[app]])

    shown = button("https://bot.example.org/app")
    sent = await bot.send_message(ADA, "The app", reply_markup=shown)
    assert sent.reply_markup and sent.reply_markup.model_dump() == shown.model_dump()
    with refusal(
        "Bad Request: inline keyboard button Web App URL 'http://bot.example.org/app' is invalid: "
        "Only HTTPS links are allowed"
    ):
        await bot.send_message(ADA, "The app", reply_markup=button("http://bot.example.org/app"))
    group = emulator.add_group("friends", [ADA]).id
    with refusal("Bad Request: BUTTON_TYPE_INVALID"):
        await bot.send_message(group, "The app", reply_markup=shown)
    sent = await bot.send_message(group, "The app")
    with refusal("Bad Request: BUTTON_TYPE_INVALID"):
        await sent.edit_reply_markup(reply_markup=shown)


async def test_guests_topics_and_ephemeral_messages_have_their_conditions(bot: Bot, emulator: Emulator) -> None:
    """A guest query takes one answer; topics and ephemeral messages need rights or settings."""
    group = emulator.add_group("strangers", [ADA], member=False)
    emulator.people.writes(ADA, "@thumbtune_bot hello", chat=group.id)
    (query,) = emulator.world.guest_queries
    content = InputTextMessageContent(message_text="x")
    article = InlineQueryResultArticle(id="1", title="x", input_message_content=content)
    sent = await bot.answer_guest_query(query, article)
    assert await bot.edit_message_text("y", inline_message_id=sent.inline_message_id) is True
    assert [each["text"] for each in group.messages.values()] == ["@thumbtune_bot hello", "y"]
    with refusal("Bad Request: query is too old and response timeout expired or query ID is invalid"):
        await bot.answer_guest_query(query, article)
    with refusal("Bad Request: MESSAGE_ID_INVALID"):
        await bot.edit_message_text("y", inline_message_id="none")
    group.bot_status = "member"
    only_ada = EphemeralMessageParameters(receiver_user_id=ADA)
    with refusal("Bad Request: CHAT_ADMIN_REQUIRED"):
        await bot.send_message(group.id, "x", ephemeral_message_parameters=only_ada)
    with refusal("Bad Request: not enough rights to create a topic"):
        await bot.create_forum_topic(group.id, "x")
    group.bot_status = "administrator"
    seen = await bot.send_message(group.id, "x", ephemeral_message_parameters=only_ada)
    assert (seen.message_id, seen.ephemeral_message_id is None) == (0, False)
    assert (await bot.create_forum_topic(group.id, "x")).message_thread_id in group.topics
    emulator.world.bot["has_topics_enabled"] = False
    with refusal("Bad Request: the chat is not a forum"):
        await bot.create_forum_topic(ADA, "x")


async def test_a_pressed_button_is_answered_once_and_soon() -> None:
    """Answering an unknown, already answered or expired callback query raises the same error.

    The notice in an answer is limited to 200 characters.
    """
    now = [0.0]
    emulator = acquainted(ADA, clock=lambda: now[0])
    reason = "Bad Request: query is too old and response timeout expired or query ID is invalid"
    async with running(emulator) as (_, bot):
        sent = await bot.send_message(ADA, "x", reply_markup=THUMBS)
        with refusal(reason):
            await bot.answer_callback_query("12345")
        query = emulator.people.presses(ADA, sent.message_id, "rate:👍")
        with refusal("Bad Request: MESSAGE_TOO_LONG"):
            await bot.answer_callback_query(query, "x" * 201)
        assert await bot.answer_callback_query(query, "x" * 200)
        with refusal(reason):
            await bot.answer_callback_query(query)
        late = emulator.people.presses(ADA, sent.message_id, "rate:👎")
        now[0] += 61
        with refusal(reason):
            await bot.answer_callback_query(late)


CALLS: list[tuple[TelegramMethod[Any] | str, dict[str, Any], str]] = [
    ("send_chat_action", {"chat_id": ADA, "action": "dancing"}, "wrong parameter action in request"),
    ("set_my_commands", {"commands": [BotCommand(command="No Way", description="x")]}, "BOT_COMMAND_INVALID"),
    ("set_my_commands", {"commands": [BotCommand(command="x", description="")]}, "BOT_COMMAND_DESCRIPTION_INVALID"),
    ("delete_my_commands", {"scope": BotCommandScopeChat(chat_id=98)}, "chat not found"),
    ("delete_my_commands", {"language_code": "english"}, "invalid language code specified"),
    ("set_webhook", {"url": "nowhere"}, "bad webhook: invalid webhook URL specified"),
    ("set_webhook", {"url": "http://x/", "secret_token": "a b"}, "secret token contains unallowed characters"),
    ("set_webhook", {"url": "http://x/", "secret_token": "a" * 257}, "secret token is too long"),
]


@pytest.mark.parametrize(("method", "arguments", "reason"), CALLS, ids=[reason for _, _, reason in CALLS])
async def test_a_bad_argument_is_refused(bot: Bot, method: str, arguments: dict[str, Any], reason: str) -> None:
    """A bad argument to sendChatAction, setMyCommands, deleteMyCommands or setWebhook is refused."""
    with refusal(f"Bad Request: {reason}") as raised:
        await getattr(bot, method)(**arguments)
    assert isinstance(raised.value, TelegramBadRequest)


async def test_a_refused_call_leaves_nothing_behind(bot: Bot, emulator: Emulator) -> None:
    """A refused call sends nothing, is not counted and uses up no message ID."""
    before = (await bot.send_message(ADA, "before")).message_id
    with refusal("Bad Request: message is too long"):
        await bot(SendMessage(chat_id=ADA, text="x" * 5000))
    assert (await bot.send_message(ADA, "after")).message_id == before + 1
    assert emulator.counts(ADA).sends == 2
