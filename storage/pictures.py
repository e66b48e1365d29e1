"""Tables for pictures and their re-encoding, files that crash the decoder, and one-time upgrade tasks.

The picture files themselves are handled by `picture_files`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict

from storage.base import Queries, first, known, transaction
from storage.chat_records import PictureState, StoredPicture
from storage.database import Database
from storage.inbox import refuse_closed
from storage.pending_removals import RemovalKind, add_removals
from storage.people import ensure_user

INSERT_PICTURE = (
    "INSERT INTO pictures(sha256, media_type, width, height, size, phash, created, state)"
    " VALUES (:sha256, :media_type, :width, :height, :size, :phash, :created, :state)"
    # A decoder's output is clean, even if an earlier version received the same bytes from a user.
    " ON CONFLICT(sha256) DO UPDATE SET state = excluded.state WHERE excluded.state = 'clean' AND state <> 'clean'"
)
_INSERT_SENDER = (
    "INSERT INTO picture_senders(sha256, sender, created) VALUES (?, ?, ?)"
    " ON CONFLICT(sha256, sender) DO UPDATE SET created = excluded.created"
)


class Pictures(Queries):
    """The pictures in the ledger."""

    @transaction
    def add(
        self, database: Database, picture: StoredPicture, sender: int | None = None, *, update: int | None = None
    ) -> None:
        """Add a picture whose bytes are already in the picture folder.

        If the ledger has the picture already, its row is kept. The file may have been removed just before this call
        (see `PersonalData.remove_picture`) but cannot be removed after it, so check afterwards that the file
        exists.

        Args:
            database: The ledger, which callers leave out.
            picture: The picture to add.
            sender: The ID of the user who sent the picture; None for an imported picture.
            update: The ID of the update with the picture, if any.

        Raises:
            UnknownRecord: The sender of `update` was erased in the meantime.
        """
        now = picture.created or self._clock()
        row = asdict(picture) | {"created": now}
        refuse_closed(database, update)
        # Table.insert would read the schema several times, which costs a millisecond on the busiest path.
        database.execute(INSERT_PICTURE, row)
        if sender is not None:
            ensure_user(database, sender, now)
            database.execute(_INSERT_SENDER, (picture.sha256, sender, now))

    async def get(self, sha256: str) -> StoredPicture:
        """Return the picture with the name `sha256`, or the picture that was re-encoded from it.

        Raises:
            UnknownRecord: There is no such picture.
        """
        found = await self._find(
            picture_of,
            "SELECT * FROM pictures WHERE sha256 = ?1"
            " OR sha256 = (SELECT sha256 FROM exchange_pictures WHERE former = ?1) LIMIT 1",
            [sha256],
        )
        return known(found, f"The database has no picture {sha256}: send it again.")

    async def all(self) -> list[StoredPicture]:
        """Return all pictures, oldest first."""
        return await self._list(picture_of, "SELECT * FROM pictures ORDER BY created, sha256")

    async def raw(self, limit: int) -> list[str]:
        """Return the names of at most `limit` raw pictures (those not yet re-encoded)."""
        return await self._column("SELECT sha256 FROM pictures WHERE state = 'raw' ORDER BY sha256 LIMIT ?", [limit])

    async def count(self, state: PictureState) -> int:
        """Return the number of pictures in the given state."""
        return await self._number("SELECT count(*) FROM pictures WHERE state = ?", [state])

    @transaction
    def replace(self, database: Database, former: str, clean: StoredPicture) -> bool:
        """Replace the raw picture `former` with its re-encoded version `clean` throughout the ledger.

        The bytes of `clean` must already be in the picture folder. The former file is recorded as due for
        removal.

        Returns:
            False, with nothing changed, if the raw picture was erased or replaced in the meantime; otherwise
            True.
        """
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

    async def quarantine(self, sha256: str) -> None:
        """Quarantine a raw picture, so that engines, training, exports and backups exclude it."""
        await self._execute("UPDATE pictures SET state = 'quarantined' WHERE sha256 = ? AND state = 'raw'", [sha256])

    async def former_names(self) -> dict[str, str]:
        """Return the present names of the re-encoded pictures, keyed by their former names."""
        rows = await self._every("SELECT DISTINCT former, sha256 FROM exchange_pictures WHERE former IS NOT NULL")
        return {row["former"]: row["sha256"] for row in rows}

    async def bytes_from(self, sender: int) -> int:
        """Return the total size in bytes of the stored pictures that a user sent."""
        return await self._number(
            "SELECT coalesce(sum(size), 0) FROM pictures"
            " WHERE sha256 IN (SELECT sha256 FROM picture_senders WHERE sender = ?)",
            [sender],
        )

    async def decoder_deaths(self, file: str) -> int:
        """Return how many times a Telegram file, given by its unique ID, has crashed the decoder."""
        return await self._number("SELECT coalesce(sum(deaths), 0) FROM decoder_deaths WHERE file = ?", [file])

    async def add_decoder_death(self, file: str) -> None:
        """Count a crash of the decoder caused by a file."""
        await self._execute(
            "INSERT INTO decoder_deaths(file, deaths, created) VALUES (?, 1, ?)"
            " ON CONFLICT(file) DO UPDATE SET deaths = deaths + 1",
            (file, self._clock()),
        )

    async def prune_decoder_deaths(self, before: float) -> None:
        """Delete the records of files that first crashed the decoder before the time `before`."""
        await self._execute("DELETE FROM decoder_deaths WHERE created < ?", [before])

    async def chore_done(self, name: str) -> bool:
        """Return whether a one-time upgrade task has been done."""
        return bool(await self._number("SELECT count(*) FROM chores WHERE name = ?", [name]))

    async def finish_chore(self, name: str) -> None:
        """Mark a one-time upgrade task as done."""
        values = (name, self._clock())
        await self._execute("INSERT INTO chores(name, done) VALUES (?, ?) ON CONFLICT DO NOTHING", values)


def picture_of(row: sqlite3.Row) -> StoredPicture:
    """Return the picture stored in a row of the table `pictures`."""
    return StoredPicture(**{**dict(row), "state": PictureState(row["state"])})
