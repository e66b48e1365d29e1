"""Validation of a message's `reply_markup` according to Telegram's rules.

Inline keyboards of link, Mini App and callback buttons are shown; a Mini App opens as a link, without
Telegram's data. Reply keyboards are accepted but not shown; `sending` handles forced replies.
"""

from __future__ import annotations

import json
from typing import Any

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.parameters import Parameters

MAX_CALLBACK_DATA = 64  # bytes (core.telegram.org/bots/api#inlinekeyboardbutton)
_MAX_BUTTONS = 100
_MAX_BYTES = 10_000


def inline_keyboard(parameters: Parameters) -> Json | None:
    """Return the inline keyboard from a call's `reply_markup`, or None if it has no buttons.

    Raises:
        BotApiError: Telegram would reject the markup.
    """
    markup = parameters.decoded("reply_markup", "reply keyboard markup")
    if markup is None:
        return None
    if not isinstance(markup, dict):
        raise api_error("object expected as reply markup")
    rows = markup.get("inline_keyboard")
    if rows is None:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise api_error('field "inline_keyboard" of the InlineKeyboardMarkup must be an Array of Arrays')
    checked = [[_button(button) for button in row] for row in rows if row]
    if sum(map(len, checked)) > _MAX_BUTTONS or len(json.dumps(checked)) > _MAX_BYTES:
        raise api_error("reply markup is too long")
    return {"inline_keyboard": checked} if checked else None


def check_place(keyboard: Json | None, kind: str) -> None:
    """Check that only private chats receive Mini App buttons.

    Raises:
        BotApiError: The keyboard has such a button, and `kind` is not "private".
    """
    buttons = [button for row in (keyboard or {}).get("inline_keyboard", ()) for button in row]
    if kind != "private" and any("web_app" in button for button in buttons):
        raise api_error("BUTTON_TYPE_INVALID")


def _button(button: Any) -> Json:
    unparsable = "can't parse inline keyboard button: "
    if not isinstance(button, dict):
        raise api_error(unparsable + "InlineKeyboardButton must be an Object")
    if "text" not in button:
        raise api_error(unparsable + 'Can\'t find field "text"')
    if not str(button["text"]).strip():
        raise api_error("inline keyboard button text must be non-empty")
    action = next((name for name in ("url", "web_app", "callback_data") if button.get(name)), None)
    if action is None:
        raise api_error(unparsable + "Text buttons are unallowed in the inline keyboard")
    if action == "callback_data" and len(str(button["callback_data"]).encode()) > MAX_CALLBACK_DATA:
        raise api_error("BUTTON_DATA_INVALID")
    if action == "url" and not str(button["url"]).startswith(("http://", "https://", "tg://")):
        raise api_error(f"inline keyboard button URL '{button['url']}' is invalid: Wrong HTTP URL")
    if action == "web_app":
        url = str(button["web_app"].get("url", "")) if isinstance(button["web_app"], dict) else ""
        if not url.startswith("https://"):
            raise api_error(f"inline keyboard button Web App URL '{url}' is invalid: Only HTTPS links are allowed")
    return {"text": button["text"], action: button[action]}
