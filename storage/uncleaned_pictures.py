"""Queries about pictures that are cleaned after they were stored, and about files that must not be decoded again."""

from __future__ import annotations

from dataclasses import asdict

from sqlite_utils import Database

from storage.base import Queries, every, first, number
from storage.exchanges import INSERT_PICTURE
from storage.personal_data import note
from storage.records import Kind, PictureState, StoredPicture


class Cleaning(Queries):
    """Stored pictures and their cleaning."""

    async def raw_pictures(self, limit: int) -> list[str]:
        """The names of pictures that are still as they were sent, `limit` of them."""
        rows = await self._read(
            lambda database: every(
                database, "SELECT sha256 FROM pictures WHERE state = 'raw' ORDER BY sha256 LIMIT ?", [limit]
            )
        )
        return [row["sha256"] for row in rows]

    async def count_pictures(self, state: PictureState) -> int:
        """How many pictures are in that state."""
        return await self._read(
            lambda database: number(database, "SELECT count(*) FROM pictures WHERE state = ?", [state])
        )

    async def replace_picture(self, former: str, clean: StoredPicture) -> bool:
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
            note(database, Kind.PICTURE, [former])
            return True

        return await self._write(work)

    async def quarantine_picture(self, sha256: str) -> None:
        """Keep a raw picture from engines, trainings, exports and backups from now on."""
        await self._write(
            lambda database: database.execute(
                "UPDATE pictures SET state = 'quarantined' WHERE sha256 = ? AND state = 'raw'", [sha256]
            )
        )

    async def former_names(self) -> dict[str, str]:
        """What each picture that was cleaned after it was stored is called now, by its former name."""
        rows = await self._read(
            lambda database: every(
                database, "SELECT DISTINCT former, sha256 FROM exchange_pictures WHERE former IS NOT NULL"
            )
        )
        return {row["former"]: row["sha256"] for row in rows}

    async def picture_bytes(self, sender: int) -> int:
        """How many bytes the stored pictures have that a person sent."""
        return await self._read(
            lambda database: number(
                database,
                "SELECT coalesce(sum(size), 0) FROM pictures"
                " WHERE sha256 IN (SELECT sha256 FROM picture_senders WHERE sender = ?)",
                [sender],
            )
        )

    async def decoder_deaths(self, file: str) -> int:
        """How often a file of Telegram's, by its unique id, has killed its decoder."""
        row = await self._read(
            lambda database: first(database, "SELECT deaths FROM decoder_deaths WHERE file = ?", [file])
        )
        return 0 if row is None else int(row["deaths"])

    async def note_decoder_death(self, file: str) -> None:
        """Count that a file has killed its decoder."""
        now = self._now()
        await self._write(
            lambda database: database.execute(
                "INSERT INTO decoder_deaths(file, deaths, created) VALUES (?, 1, ?)"
                " ON CONFLICT(file) DO UPDATE SET deaths = deaths + 1",
                (file, now),
            )
        )

    async def prune_decoder_deaths(self, before: float) -> None:
        """Forget files that were noted first before that time."""
        await self._write(lambda database: database.execute("DELETE FROM decoder_deaths WHERE created < ?", [before]))

    async def chore_done(self, name: str) -> bool:
        """Whether a chore that is done once, after an upgrade, is done."""
        row = await self._read(lambda database: first(database, "SELECT 1 FROM chores WHERE name = ?", [name]))
        return row is not None

    async def finish_chore(self, name: str) -> None:
        """Note that a chore is done."""
        now = self._now()
        await self._write(
            lambda database: database.execute(
                "INSERT INTO chores(name, done) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, now)
            )
        )
