"""Command menus of individual chats, which Telegram keeps until they are deleted.

The rows of an erased user are kept until the user's menus have been deleted from Telegram, because there
is no other record of the menus.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from storage.base import Queries


class Menus(Queries):
    """Command menus by private chat and language code.

    The language code is empty for the menu that applies to all other languages.
    """

    async def all(self) -> set[tuple[int, str]]:
        """Return all menus that were set and have not been deleted, as pairs of chat ID and language code."""
        rows = await self._every("SELECT chat, language FROM menus")
        return {(row["chat"], row["language"]) for row in rows}

    async def add(self, menus: Iterable[tuple[int, str]]) -> None:
        """Store menus, given as pairs of chat ID and language code, before they are set in Telegram."""
        await self._execute(
            "INSERT OR IGNORE INTO menus(chat, language)"
            " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
            [json.dumps(list(menus))],
        )

    async def remove(self, chat: int, language: str) -> None:
        """Remove the record of a menu that was deleted from Telegram."""
        await self._execute("DELETE FROM menus WHERE chat = ? AND language = ?", [chat, language])
