"""Clean the pictures that earlier versions stored as they were sent: in the background after an upgrade, once.

One picture after the other is re-encoded by a decoder process of low priority and takes the former one's place in the
ledger in one transaction; its former name stays with the exchanges that showed it, for their prompts' hashes. Killed at
any moment, the next start goes on with what is still raw. A picture that cannot be cleaned goes into quarantine: its
file stays, and nothing reads it. At the end the files of runs and the imported sources follow; a row in the ledger
says that all of it is done.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Final, Self

import structlog
from rich.console import Console

from bot.redaction import trace
from inference.images.decoder import PictureDecoders
from inference.images.decoder_protocol import DecodeError
from inference.images.opening import MAX_PIXELS
from storage.errors import Damaged, StorageError, UnknownRecord
from storage.ledger import Ledger
from storage.picture_store import PictureStore
from storage.records import PictureState, StoredPicture
from training.data.row_rewriting import rename_pictures
from training.data.source_pictures import clean_sources
from training.job import TrainingError

CHORE: Final = "clean pictures"
NICENESS: Final = 19
RETRY_SECONDS: Final = 60.0

_BATCH: Final = 100

log = structlog.get_logger()


class StoredPictures:
    """The pictures in the store, of which those by earlier versions have to be cleaned."""

    def __init__(
        self, ledger: Ledger, pictures: PictureStore, decoders: PictureDecoders, *, runs: Path, sources: Path
    ) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._decoders = decoders
        self._runs = runs
        self._sources = sources
        self._one_at_a_time = asyncio.Lock()
        self._finishing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def beside(cls, ledger: Ledger, folder: Path, decoders: PictureDecoders) -> Self:
        """For the ledger in `folder`, with pictures, runs and sources where the bot keeps them."""
        return cls(
            ledger, PictureStore(folder / "pictures"), decoders, runs=folder / "runs", sources=folder / "sources"
        )

    def start(self) -> None:
        """Clean in the background what is left to clean."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Leave the rest to the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def clean(self, picture: StoredPicture) -> StoredPicture:
        """Return the clean picture in the place of a stored one, which is cleaned now if it is raw.

        Raises:
            UnknownRecord: It cannot be cleaned, is missing, or was forgotten meanwhile.
            StorageError: The clean one cannot be written.
        """
        if picture.state is PictureState.RAW:
            async with self._one_at_a_time:
                await self._clean(picture.sha256)
            picture = await self._ledger.pictures.get(picture.sha256)
        if picture.state is not PictureState.CLEAN:
            raise UnknownRecord(f"The picture {picture.sha256} is in quarantine: it could not be re-encoded.")
        return picture

    async def finish(self) -> None:
        """Clean all that is left, runs' files and imported sources included.

        Raises `StorageError`, `TrainingError` for a source that cannot be read, OSError.
        """
        async with self._finishing:
            if await self._ledger.pictures.chore_done(CHORE) and not await self._ledger.pictures.raw(1):
                return
            await self.finish_pictures()
            former = await self._ledger.pictures.former_names()
            await asyncio.to_thread(rename_pictures, self._runs, former)
            await asyncio.to_thread(clean_sources, self._sources)
            await self._ledger.pictures.finish_chore(CHORE)

    async def finish_pictures(self) -> None:
        """Clean what the ledger has. Raises `StorageError`, OSError."""
        cleaned = 0
        while names := await self._ledger.pictures.raw(_BATCH):
            for name in names:
                async with self._one_at_a_time:
                    await self._clean(name)
            cleaned += len(names)
        if cleaned:
            quarantined = await self._ledger.pictures.count(PictureState.QUARANTINED)
            log.info("stored pictures were cleaned", pictures=cleaned, quarantined=quarantined)

    async def _work(self) -> None:
        while True:
            try:
                await self.finish()
            except (StorageError, TrainingError, OSError) as error:
                log.error("stored pictures are not all clean yet", error=str(error), again_in=RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - people are answered meanwhile
                log.error("stored pictures are not all clean yet", trace=trace(error), again_in=RETRY_SECONDS)
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _clean(self, former: str) -> None:
        try:
            data = await self._pictures.get(former)
            clean = await self._decoders.clean(data, MAX_PIXELS / 1e6)
        except (DecodeError, UnknownRecord, Damaged) as error:
            log.warning("a stored picture goes into quarantine", picture=former, reason=str(error))
            await self._ledger.pictures.quarantine(former)
            return
        name = await self._pictures.put(clean.data)
        row = StoredPicture(name, clean.media_type, clean.width, clean.height, len(clean.data), clean.phash)
        if await self._ledger.pictures.replace(former, row):
            if not self._pictures.path(name).is_file():
                await self._pictures.put(clean.data)  # removed between the two
            if name == former:
                return
            await self._ledger.personal_data.remove_picture(former, partial(self._pictures.remove, former))
        else:
            await self._ledger.personal_data.remove_picture(name, partial(self._pictures.remove, name))


async def finish_pictures(ledger: Ledger, folder: Path, console: Console) -> None:
    """Clean on the command line what a bot has not cleaned yet. Raises `StorageError`, OSError.

    `console` is for progress and notes.
    """
    left = await ledger.pictures.count(PictureState.RAW)
    if left:
        decoders = PictureDecoders(1)
        try:
            with console.status(f"cleaning {left} pictures of an earlier version"):
                await StoredPictures.beside(ledger, folder, decoders).finish_pictures()
        finally:
            await decoders.close()
    quarantined = await ledger.pictures.count(PictureState.QUARANTINED)
    if quarantined:
        console.print(
            f"Left out: {quarantined} pictures in quarantine, which could not be re-encoded.", highlight=False
        )
