"""The table of Bot API methods that the emulator implements (only those that the thumbtune bot calls)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from telegram_emulator import bot_account, editing, sending
from telegram_emulator.parameters import Parameters
from telegram_emulator.world import World

Method = Callable[[World, Parameters], Awaitable[Any]]

METHODS: dict[str, Method] = {
    method.__name__.replace("_", ""): method
    for method in (
        *(bot_account.get_me, bot_account.get_updates, bot_account.set_webhook, bot_account.delete_webhook),
        *(bot_account.get_file, bot_account.create_forum_topic),
        *(bot_account.set_my_commands, bot_account.delete_my_commands),
        *(sending.send_message, sending.send_photo, sending.send_document, sending.send_chat_action),
        *(sending.answer_guest_query, editing.answer_callback_query),
        *(editing.edit_message_text, editing.edit_message_caption, editing.edit_message_media),
        *(editing.edit_message_reply_markup, editing.delete_message),
    )
}
"""The methods, keyed by name in lower case because Telegram ignores the case of method names."""
