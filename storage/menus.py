"""Command menus set for individual chats; Telegram keeps each menu until it is deleted.

The rows of an erased user are kept until the user's menus have been deleted from Telegram, because
nothing else records which menus exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from storage.base import Queries


class Menus(Queries):
    """Command menus by private chat and language code.

    The language code is empty for the menu used for all the other languages.
    """

    async def all(self) -> set[tuple[int, str]]:
        """Return all menus that were set and have not been deleted, as pairs of chat ID and language code."""
        rows = await self._every("SELECT chat, language FROM menus")
        return {(row["chat"], row["language"]) for row in rows}

    async def add(self, menus: Iterable[tuple[int, str]]) -> None:
        """Record menus that are about to be set in Telegram, as pairs of chat ID and language code."""
        await self._execute(
            "INSERT OR IGNORE INTO menus(chat, language)"
            " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
            [json.dumps(list(menus))],
        )

    async def remove(self, chat: int, language: str) -> None:
        """Remove the record of a menu that was deleted from Telegram."""
        await self._execute("DELETE FROM menus WHERE chat = ? AND language = ?", [chat, language])
