"""The table of Bot API methods that the emulator serves. Names are looked up without regard to case, as in Telegram."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from telegram_emulator import account, editing, sending
from telegram_emulator.parameters import Parameters
from telegram_emulator.world import World

Method = Callable[[World, Parameters], Awaitable[Any]]

METHODS: dict[str, Method] = {
    name.lower(): method
    for name, method in {
        "getMe": account.get_me,
        "getUpdates": account.get_updates,
        "setWebhook": account.set_webhook,
        "deleteWebhook": account.delete_webhook,
        "getWebhookInfo": account.get_webhook_info,
        "getFile": account.get_file,
        "setMyCommands": account.set_my_commands,
        "getMyCommands": account.get_my_commands,
        "deleteMyCommands": account.delete_my_commands,
        "getChat": account.get_chat,
        "getChatMember": account.get_chat_member,
        "sendMessage": sending.send_message,
        "sendPhoto": sending.send_photo,
        "sendDocument": sending.send_document,
        "sendMediaGroup": sending.send_media_group,
        "sendChatAction": sending.send_chat_action,
        "editMessageText": editing.edit_message_text,
        "editMessageCaption": editing.edit_message_caption,
        "editMessageMedia": editing.edit_message_media,
        "editMessageReplyMarkup": editing.edit_message_reply_markup,
        "deleteMessage": editing.delete_message,
        "deleteMessages": editing.delete_messages,
        "setMessageReaction": editing.set_message_reaction,
        "answerCallbackQuery": editing.answer_callback_query,
    }.items()
}
