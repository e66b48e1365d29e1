"""Reply markup: what a bot may hang under a message, checked as Telegram checks it.

Knows inline keyboards in full. Reply keyboards and their removal are accepted and not shown; what a forced
reply does, `sending` tells.
"""

from __future__ import annotations

import json
from typing import Any

from telegram_emulator.parameters import Parameters
from telegram_emulator.refusals import Json, refused

MAX_CALLBACK_DATA = 64  # bytes (core.telegram.org/bots/api#inlinekeyboardbutton)
_MAX_BUTTONS = 100
_MAX_BYTES = 10_000
_ACTIONS = (
    "url", "callback_data", "web_app", "login_url", "switch_inline_query", "switch_inline_query_current_chat",
    "switch_inline_query_chosen_chat", "copy_text", "callback_game", "pay",
)  # fmt: skip


def inline_keyboard(parameters: Parameters) -> Json | None:
    """The message's `reply_markup`, None without inline buttons. Raises `Refused`."""
    markup = parameters.decoded("reply_markup", "reply keyboard markup")
    if markup is None:
        return None
    if not isinstance(markup, dict):
        raise refused("object expected as reply markup")
    rows = markup.get("inline_keyboard")
    if rows is None:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise refused('field "inline_keyboard" of the InlineKeyboardMarkup must be an Array of Arrays')
    checked = [[_button(button) for button in row] for row in rows if row]
    if sum(map(len, checked)) > _MAX_BUTTONS or len(json.dumps(checked)) > _MAX_BYTES:
        raise refused("reply markup is too long")
    return {"inline_keyboard": checked} if checked else None


def _button(button: Any) -> Json:
    complaint = "can't parse inline keyboard button: "
    if not isinstance(button, dict):
        raise refused(complaint + "InlineKeyboardButton must be an Object")
    if "text" not in button:
        raise refused(complaint + 'Can\'t find field "text"')
    if not str(button["text"]).strip():
        raise refused("inline keyboard button text must be non-empty")
    action = next((name for name in _ACTIONS if button.get(name) not in (None, "", False)), None)
    if action is None:
        raise refused(complaint + "Text buttons are unallowed in the inline keyboard")
    if action == "callback_data" and len(str(button["callback_data"]).encode()) > MAX_CALLBACK_DATA:
        raise refused("BUTTON_DATA_INVALID")
    if action == "url" and not str(button["url"]).startswith(("http://", "https://", "tg://")):
        raise refused(f"inline keyboard button URL '{button['url']}' is invalid: Wrong HTTP URL")
    return {"text": button["text"], action: button[action]}
