"""Re-encode, once after an upgrade, the pictures that earlier versions stored as they were sent.

It runs in the background, one picture at a time and at low priority. If it is interrupted, the next start goes on with
the pictures that are left. The data files of runs and the imported sources come last, and then a row in the ledger
records the end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console

from bot.chat.stored_pictures import StoredPictures
from bot.redaction import trace
from inference.images.decoder import PictureDecoders
from storage.chat_records import PictureState
from storage.ledger import Ledger
from storage.picture_store import PictureStore
from training.data.row_rewriting import rename_pictures
from training.data.source_pictures import clean_sources

CHORE: Final = "clean pictures"
NICENESS: Final = 19
RETRY_SECONDS: Final = 60.0

_BATCH: Final = 100

log = structlog.get_logger()


class PictureUpgrade:
    """The re-encoding in the background. Call `start` and `stop`, or `finish` to wait for its end."""

    def __init__(self, ledger: Ledger, stored: StoredPictures, *, runs: Path, sources: Path) -> None:
        self._ledger = ledger
        self._stored = stored
        self._runs = runs
        self._sources = sources
        self._finishing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start re-encoding in the background, unless it is done."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop re-encoding, and leave the rest to the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def finish(self) -> None:
        """Re-encode everything that is left, including the pictures of runs and sources.

        Raises:
            StorageError: The ledger or the pictures cannot be written.
            TrainingError: A source cannot be read.
            OSError: A run's files cannot be changed.
        """
        async with self._finishing:
            if await self._ledger.pictures.chore_done(CHORE) and not await self._ledger.pictures.raw(1):
                return
            await clean_pictures(self._ledger, self._stored)
            former = await self._ledger.pictures.former_names()
            await asyncio.to_thread(rename_pictures, self._runs, former)
            await asyncio.to_thread(clean_sources, self._sources)
            await self._ledger.pictures.finish_chore(CHORE)

    async def _work(self) -> None:
        while True:
            try:
                await self.finish()
            except Exception as error:  # noqa: BLE001 - the bot answers meanwhile
                log.error("re-encoding of stored pictures failed", trace=trace(error), retry_in=RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return


async def clean_pictures(ledger: Ledger, stored: StoredPictures) -> None:
    """Re-encode the pictures of the ledger that were stored as sent. Raises `StorageError` and `OSError`."""
    cleaned = 0
    while names := await ledger.pictures.raw(_BATCH):
        for name in names:
            await stored.clean(name)
        cleaned += len(names)
    if cleaned:
        quarantined = await ledger.pictures.count(PictureState.QUARANTINED)
        log.info("stored pictures re-encoded", pictures=cleaned, quarantined=quarantined)


async def finish_pictures(ledger: Ledger, folder: Path, console: Console) -> None:
    """Re-encode the pictures that are left, for the command line. Raises `StorageError` and `OSError`."""
    if left := await ledger.pictures.count(PictureState.RAW):
        decoders = PictureDecoders(1)
        try:
            with console.status(f"cleaning {left} pictures of an earlier version"):
                await clean_pictures(ledger, StoredPictures(ledger, PictureStore(folder / "pictures"), decoders))
        finally:
            await decoders.close()
    if quarantined := await ledger.pictures.count(PictureState.QUARANTINED):
        console.print(
            f"Left out: {quarantined} pictures in quarantine, which could not be re-encoded.", highlight=False
        )
