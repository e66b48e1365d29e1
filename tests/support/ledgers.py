"""Sample records for tests of the ledger, and a child process that writes until it is killed.

`python -m tests.support.ledgers DIRECTORY FIRST COUNT` opens the ledger and stores, begins, answers,
rates and finishes COUNT updates, numbered from FIRST, in several concurrent tasks. The process prints a
line for each step once the ledger has acknowledged it. A reader of the output thus knows what must have
survived.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from storage.chat_records import Exchange, StoredPicture
from storage.database import Database
from storage.errors import NotSaved
from storage.learning_records import Rating
from storage.ledger import Ledger
from storage.migrations import migrate
from storage.picture_files import PictureStore

TASKS = 8


@contextmanager
def copied_ledgers() -> Iterator[None]:
    """Create new ledgers' tables by copying a template, instead of applying the migrations to each ledger.

    Applying the migrations takes ten times as long as everything else involved in opening a ledger.
    """
    template = Database(sqlite3.connect(":memory:", check_same_thread=False))  # also used by ledgers in other threads
    migrate(template)

    def copy(database: Database) -> None:
        if not database.table_names():
            template.conn.backup(database.conn)
        migrate(database)

    with patch("storage.ledger.migrate", copy):
        yield
    template.close()


@contextmanager
def full_disk(ledger: Ledger) -> Iterator[None]:
    """Make the ledger refuse all writes, as if the disk were full.

    Limiting the size of the process's files instead would affect the tests' own files too.
    """

    async def refuse(_: object) -> None:
        raise NotSaved("the disk is full")

    writer: Any = ledger._writer
    writer.do = refuse
    try:
        yield
    finally:
        del writer.do


def exchange(session: int, update: int, **changes: Any) -> Exchange:
    """Return an exchange of user 1 in chat 1, without pictures; `changes` override its fields."""
    plain = Exchange(
        session=session,
        chat=1,
        asker=1,
        update=update,
        question="What is it?",
        pictures=(),
        answer=f"Answer to {update}.",
        model="base",
        system="Be kind.",
        prompt_hash="c0ffee",
        temperature=0.8,
        top_p=0.8,
        max_new_tokens=512,
        seed=7,
        finish="stop",
        prompt_tokens=100,
        completion_tokens=5,
        cached_tokens=0,
        encoded_tiles=1,
        first_token_seconds=0.1,
        seconds=0.2,
    )
    return replace(plain, **changes)


def picture(sha256: str, **changes: Any) -> StoredPicture:
    """Return a sample picture record; `changes` override its fields."""
    return replace(StoredPicture(sha256, "image/png", 16, 8, 120, "00ff00ff00ff00ff"), **changes)


def picture_bytes(update: int) -> bytes:
    """Return the bytes that the child process stores as the picture of an update."""
    return b"picture of %d " % update * 200


def newest_update(ledger: Ledger) -> int:
    """Return the ID of the update received last; raise TypeError if the inbox is empty."""
    with closing(sqlite3.connect(ledger.path)) as database:
        return int(database.execute("SELECT id FROM inbox ORDER BY received DESC, id DESC LIMIT 1").fetchone()[0])


def say(step: str, update: int) -> None:
    """Report to the parent process that the ledger has acknowledged a step."""
    sys.stdout.write(f"{step} {update}\n")
    sys.stdout.flush()


async def _keep(ledger: Ledger, pictures: PictureStore, updates: Iterator[int]) -> None:
    for update in updates:
        chat = update % 5 + 1
        assert await ledger.inbox.store([(update, f"chat {chat}", f'{{"update_id": {update}}}')]) == [True]
        say("stored", update)
        await ledger.inbox.begin(update)
        sha256 = await pictures.put(picture_bytes(update))
        await ledger.pictures.add(picture(sha256))
        say("picture", update)
        await ledger.replies.begin(update, 0, chat)
        await ledger.replies.sent(update, 0, update + 1)
        say("sent", update)
        session = await ledger.sessions.open(chat, chat)
        found = (await ledger.exchanges.record(exchange(session, update, chat=chat, asker=chat, pictures=(sha256,)))).id
        say("exchange", update)
        assert await ledger.votes.cast(Rating(found, chat, 1 if update % 2 else -1, update))
        say("rated", update)
        await ledger.replies.finish(update, 0)
        await ledger.inbox.finish(update)
        say("finished", update)


async def _main(directory: Path, first: int, count: int) -> None:
    pictures = PictureStore(directory / "pictures")
    async with Ledger.open(directory) as ledger:
        say("open", first)
        updates = iter(range(first, first + count))
        await asyncio.gather(*(_keep(ledger, pictures, updates) for _ in range(TASKS)))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
