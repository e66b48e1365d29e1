"""Queries about who has been given a menu of commands of their own, which Telegram keeps until it is taken back.

Whoever is forgotten stays here until theirs is: that is the only way to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlite_utils import Database

from storage.base import Queries


class Menus(Queries):
    """Menus by private chat and language code, which is empty for the one that is shown in all other languages."""

    async def all(self) -> set[tuple[int, str]]:
        """Every menu that was given and not taken back."""
        rows = await self._every("SELECT chat, language FROM menus")
        return {(row["chat"], row["language"]) for row in rows}

    async def add(self, menus: Iterable[tuple[int, str]]) -> None:
        """Note these, before they are given."""
        given = json.dumps(list(menus))

        def work(database: Database) -> None:
            database.execute(
                "INSERT OR IGNORE INTO menus(chat, language)"
                " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
                [given],
            )

        await self._write(work)

    async def remove(self, chat: int, language: str) -> None:
        """Strike off one that has been taken back."""

        def work(database: Database) -> None:
            database.execute("DELETE FROM menus WHERE chat = ? AND language = ?", [chat, language])

        await self._write(work)
