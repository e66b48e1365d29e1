"""Queries about pictures that are cleaned after they were stored, and about files that must not be decoded again."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict

from sqlite_utils import Database

from storage.base import Queries, first
from storage.chat_records import PictureState, StoredPicture
from storage.errors import UnknownRecord
from storage.inbox import refuse_closed
from storage.people import ensure_user
from storage.removals import RemovalKind, add_removals

INSERT_PICTURE = (
    "INSERT INTO pictures(sha256, media_type, width, height, size, phash, created, state)"
    " VALUES (:sha256, :media_type, :width, :height, :size, :phash, :created, :state)"
    # What a decoder has made is clean, even where an earlier version was sent the very same bytes.
    " ON CONFLICT(sha256) DO UPDATE SET state = excluded.state WHERE excluded.state = 'clean' AND state <> 'clean'"
)
_INSERT_SENDER = (
    "INSERT INTO picture_senders(sha256, sender, created) VALUES (?, ?, ?)"
    " ON CONFLICT(sha256, sender) DO UPDATE SET created = excluded.created"
)


class Pictures(Queries):
    """Stored pictures and their cleaning."""

    async def add(self, picture: StoredPicture, sender: int | None = None, *, update: int | None = None) -> None:
        """Note a picture whose bytes are in the picture folder, who sent it and for which update it was fetched (None:
        it was imported).

        A picture already known keeps its first row. Its bytes may have been removed just before this; from now on
        they are not (`PersonalData.remove_picture`), so see afterwards that they are there. Raises `UnknownRecord` when
        who sent the update was forgotten meanwhile.
        """
        now = self._now(picture.created)
        row = asdict(picture) | {"created": now}

        def work(database: Database) -> None:
            refuse_closed(database, update)
            # Not Table.insert: it reads the schema several times, which costs a millisecond on the busiest path.
            database.execute(INSERT_PICTURE, row)
            if sender is not None:
                ensure_user(database, sender, now)
                database.execute(_INSERT_SENDER, (picture.sha256, sender, now))

        await self._write(work)

    async def get(self, sha256: str) -> StoredPicture:
        """The picture of that name, or the one that was made of it. Raises `UnknownRecord`."""
        row = await self._first(
            "SELECT * FROM pictures WHERE sha256 = ?1"
            " OR sha256 = (SELECT sha256 FROM exchange_pictures WHERE former = ?1) LIMIT 1",
            [sha256],
        )
        if row is None:
            raise UnknownRecord(f"The ledger has no picture {sha256}: send it again.")
        return picture_of(row)

    async def all(self, exchanges: list[int] | None = None) -> list[StoredPicture]:
        """The pictures of these exchanges, or all of them, each once, the oldest first."""
        where, values = "", []
        if exchanges is not None:
            where = (
                " WHERE sha256 IN (SELECT sha256 FROM exchange_pictures"
                " WHERE exchange IN (SELECT value FROM json_each(?)))"
            )
            values = [json.dumps(exchanges)]
        rows = await self._every(f"SELECT * FROM pictures{where} ORDER BY created, sha256", values)
        return [picture_of(row) for row in rows]

    async def raw(self, limit: int) -> list[str]:
        """The names of pictures that are still as they were sent, `limit` of them."""
        rows = await self._every("SELECT sha256 FROM pictures WHERE state = 'raw' ORDER BY sha256 LIMIT ?", [limit])
        return [row["sha256"] for row in rows]

    async def count(self, state: PictureState) -> int:
        """How many pictures are in that state."""
        return await self._number("SELECT count(*) FROM pictures WHERE state = ?", [state])

    async def replace(self, former: str, clean: StoredPicture) -> bool:
        """Put `clean`, whose bytes are in the picture folder, in the place of a raw picture everywhere in the ledger.

        The former file is noted for removal. False, having changed nothing, for a picture that was forgotten or
        replaced meanwhile.
        """

        def work(database: Database) -> bool:
            row = first(database, "SELECT created FROM pictures WHERE sha256 = ? AND state = 'raw'", [former])
            if row is None:
                return False
            database.execute(INSERT_PICTURE, asdict(clean) | {"created": row["created"]})
            if clean.sha256 == former:
                return True
            database.execute(
                "UPDATE exchange_pictures SET former = coalesce(former, sha256), sha256 = ? WHERE sha256 = ?",
                (clean.sha256, former),
            )
            database.execute(
                "INSERT INTO picture_senders(sha256, sender, created)"
                " SELECT ?, sender, created FROM picture_senders WHERE sha256 = ?"
                " ON CONFLICT(sha256, sender) DO UPDATE SET created = max(created, excluded.created)",
                (clean.sha256, former),
            )
            database.execute("DELETE FROM pictures WHERE sha256 = ?", [former])
            add_removals(database, RemovalKind.PICTURE, [former])
            return True

        return await self._write(work)

    async def quarantine(self, sha256: str) -> None:
        """Keep a raw picture from engines, trainings, exports and backups from now on."""
        await self._execute("UPDATE pictures SET state = 'quarantined' WHERE sha256 = ? AND state = 'raw'", [sha256])

    async def former_names(self) -> dict[str, str]:
        """What each picture that was cleaned after it was stored is called now, by its former name."""
        rows = await self._every("SELECT DISTINCT former, sha256 FROM exchange_pictures WHERE former IS NOT NULL")
        return {row["former"]: row["sha256"] for row in rows}

    async def bytes_from(self, sender: int) -> int:
        """How many bytes the stored pictures have that a person sent."""
        return await self._number(
            "SELECT coalesce(sum(size), 0) FROM pictures"
            " WHERE sha256 IN (SELECT sha256 FROM picture_senders WHERE sender = ?)",
            [sender],
        )

    async def decoder_deaths(self, file: str) -> int:
        """How often a file of Telegram's, by its unique id, has killed its decoder."""
        row = await self._first("SELECT deaths FROM decoder_deaths WHERE file = ?", [file])
        return 0 if row is None else int(row["deaths"])

    async def add_decoder_death(self, file: str) -> None:
        """Count that a file has killed its decoder."""
        now = self._now()
        await self._execute(
            "INSERT INTO decoder_deaths(file, deaths, created) VALUES (?, 1, ?)"
            " ON CONFLICT(file) DO UPDATE SET deaths = deaths + 1",
            (file, now),
        )

    async def prune_decoder_deaths(self, before: float) -> None:
        """Forget files that were noted first before that time."""
        await self._execute("DELETE FROM decoder_deaths WHERE created < ?", [before])

    async def chore_done(self, name: str) -> bool:
        """Whether a chore that is done once, after an upgrade, is done."""
        row = await self._first("SELECT 1 FROM chores WHERE name = ?", [name])
        return row is not None

    async def finish_chore(self, name: str) -> None:
        """Note that a chore is done."""
        now = self._now()
        await self._execute("INSERT INTO chores(name, done) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, now))


def picture_of(row: sqlite3.Row) -> StoredPicture:
    """The record of a row of `pictures`."""
    return StoredPicture(**{**dict(row), "state": PictureState(row["state"])})
