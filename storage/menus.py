"""Command menus of individual chats, which Telegram keeps until they are deleted.

The rows of an erased person stay until the person's menus are deleted, because nothing else records these menus.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from storage.base import Queries


class Menus(Queries):
    """Menus by private chat and language code; the code is empty for the menu of all other languages."""

    async def all(self) -> set[tuple[int, str]]:
        """Return every menu that was set and not deleted."""
        rows = await self._every("SELECT chat, language FROM menus")
        return {(row["chat"], row["language"]) for row in rows}

    async def add(self, menus: Iterable[tuple[int, str]]) -> None:
        """Store menus before they are set."""
        await self._execute(
            "INSERT OR IGNORE INTO menus(chat, language)"
            " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
            [json.dumps(list(menus))],
        )

    async def remove(self, chat: int, language: str) -> None:
        """Remove a menu that was deleted."""
        await self._execute("DELETE FROM menus WHERE chat = ? AND language = ?", [chat, language])
