"""The table of Bot API methods that the emulator implements (only those that the thumbtune bot calls)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from telegram_emulator import bot_account, editing, sending
from telegram_emulator.parameters import Parameters
from telegram_emulator.world import World

Method = Callable[[World, Parameters], Awaitable[Any]]

METHODS: dict[str, Method] = {
    "getme": bot_account.get_me,
    "getupdates": bot_account.get_updates,
    "setwebhook": bot_account.set_webhook,
    "deletewebhook": bot_account.delete_webhook,
    "getfile": bot_account.get_file,
    "createforumtopic": bot_account.create_forum_topic,
    "setmycommands": bot_account.set_my_commands,
    "deletemycommands": bot_account.delete_my_commands,
    "sendmessage": sending.send_message,
    "sendphoto": sending.send_photo,
    "senddocument": sending.send_document,
    "answerguestquery": sending.answer_guest_query,
    "sendchataction": sending.send_chat_action,
    "editmessagetext": editing.edit_message_text,
    "editmessagecaption": editing.edit_message_caption,
    "editmessagemedia": editing.edit_message_media,
    "editmessagereplymarkup": editing.edit_message_reply_markup,
    "deletemessage": editing.delete_message,
    "answercallbackquery": editing.answer_callback_query,
}
"""The methods, keyed by name in lower case because Telegram ignores the case of method names."""
