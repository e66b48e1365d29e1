"""Inline buttons and what they carry back: at most 64 bytes of callback data, told apart by their prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup

THUMBS: Final = {1: "👍", -1: "👎"}
CHOSEN: Final = " ✓"


class Rate(CallbackData, prefix="rate"):
    """`rate:<exchange>:<value>`: a thumb under an answer, 1 or -1."""

    exchange: int
    value: int


class Speak(CallbackData, prefix="language"):
    """`language:<code>`: a language to be answered in."""

    code: str


def rating(exchange: int, chosen: int | None = None) -> InlineKeyboardMarkup:
    """👍 and 👎 for an exchange, the chosen one marked."""
    row = [
        _button(thumb + (CHOSEN if value == chosen else ""), Rate(exchange=exchange, value=value))
        for value, thumb in THUMBS.items()
    ]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def languages(names: Mapping[str, str], spoken: str) -> InlineKeyboardMarkup:
    """One button for each language, named in itself, the spoken one marked."""
    rows = [[_button(name + (CHOSEN if code == spoken else ""), Speak(code=code))] for code, name in names.items()]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def _button(text: str, data: CallbackData) -> InlineKeyboardButton:
    return InlineKeyboardButton(text=text, callback_data=data.pack())
