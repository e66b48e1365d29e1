"""Access to stored pictures, and re-encoding of those that earlier versions stored exactly as received.

After an upgrade, the old pictures are re-encoded once, in the background, one at a time and at low
priority. An old picture that is needed sooner is re-encoded when it is read. If re-encoding is
interrupted, the bot continues with the remaining pictures the next time it starts. The data files of
runs and the imported sources are processed last; a row in the ledger then records that everything has
been re-encoded.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog
from rich.console import Console

from bot.redaction import error_trace
from inference.images.decoder import PictureDecoders
from inference.images.decoder_protocol import DecodeError
from inference.images.opening import MAX_PIXELS
from inference.messages import Picture
from storage.chat_records import PictureState, StoredPicture
from storage.errors import Damaged, UnknownRecord
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from training.data.row_erasure import rename_pictures
from training.data.source_pictures import clean_sources

CHORE: Final = "clean pictures"
NICENESS: Final = 19
RETRY_SECONDS: Final = 60.0

_BATCH: Final = 100

log = structlog.get_logger()


class StoredPictures:
    """Reads the picture store, returning pictures only in re-encoded form, never exactly as a user sent them.

    `run` re-encodes the remaining pictures and retries after errors; `finish` does so without retrying.
    """

    def __init__(self, ledger: Ledger, pictures: PictureStore, decoders: PictureDecoders) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._decoders = decoders
        self._one_at_a_time = asyncio.Lock()
        self._finishing = asyncio.Lock()

    async def get(self, sha256: str) -> Picture:
        """Return the picture whose current or former name is `sha256`.

        Raises:
            UnknownRecord: The picture cannot be re-encoded, is missing, or was deleted.
            StorageError: The picture cannot be read, or its re-encoded form cannot be written.
        """
        picture = await self._ledger.pictures.get(sha256)
        if picture.state is PictureState.RAW:
            await self.clean(picture.sha256)
            picture = await self._ledger.pictures.get(picture.sha256)
        if picture.state is not PictureState.CLEAN:
            raise UnknownRecord(f"The picture {picture.sha256} is in quarantine: it could not be re-encoded.")
        return Picture(await self._pictures.get(picture.sha256), picture.sha256, picture.media_type)

    async def clean(self, former: str) -> None:
        """Replace a picture stored exactly as received with a re-encoded one.

        If re-encoding fails, the picture is quarantined. Exchanges keep the former name as well as the new one,
        because the hashes of their prompts were computed with the former name.
        """
        async with self._one_at_a_time:
            try:
                data = await self._pictures.get(former)
                clean = await self._decoders.clean(data, MAX_PIXELS / 1e6)
            except (DecodeError, UnknownRecord, Damaged) as error:
                log.warning("stored picture quarantined", picture=former, reason=str(error))
                await self._ledger.pictures.quarantine(former)
                return
            name = await self._pictures.put(clean.data)
            row = StoredPicture(name, clean.media_type, clean.width, clean.height, len(clean.data), clean.phash)
            replaced = await self._ledger.pictures.replace(former, row)
            if replaced and not self._pictures.path(name).is_file():
                await self._pictures.put(clean.data)  # an erasure removed the file before its row was added
            unused = former if replaced else name
            if not (replaced and name == former):
                await self._ledger.personal_data.remove_picture(unused, partial(self._pictures.remove, unused))

    async def finish(self) -> None:
        """Re-encode all remaining pictures in the ledger and in sources, and update the data files of runs.

        Raises:
            StorageError: The ledger or the pictures cannot be written.
            TrainingError: A source cannot be read.
            OSError: A run's files cannot be changed.
        """
        async with self._finishing:
            if await self._ledger.pictures.chore_done(CHORE) and not await self._ledger.pictures.raw(1):
                return
            await self.clean_all()
            former = await self._ledger.pictures.former_names()
            await asyncio.to_thread(rename_pictures, self._ledger.path.with_name("runs"), former)
            await asyncio.to_thread(clean_sources, self._ledger.path.with_name("sources"))
            await self._ledger.pictures.finish_chore(CHORE)

    async def run(self) -> None:
        """Re-encode all remaining pictures, retrying after errors.

        If this is cancelled, the bot continues with the rest the next time it starts.
        """
        while True:
            try:
                await self.finish()
            except Exception as error:  # noqa: BLE001 - the bot keeps answering
                log.error("re-encoding of stored pictures failed", trace=error_trace(error), retry_in=RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def clean_all(self) -> None:
        """Re-encode the pictures in the ledger that were stored exactly as received.

        Raises StorageError or OSError if this fails.
        """
        cleaned = 0
        while names := await self._ledger.pictures.raw(_BATCH):
            for name in names:
                await self.clean(name)
            cleaned += len(names)
        if cleaned:
            quarantined = await self._ledger.pictures.count(PictureState.QUARANTINED)
            log.info("stored pictures re-encoded", pictures=cleaned, quarantined=quarantined)


async def finish_pictures(ledger: Ledger, console: Console) -> None:
    """Re-encode the remaining old pictures before a command copies them, reporting the status on `console`.

    Raises StorageError or OSError if the ledger or a picture file cannot be read or written.
    """
    if left := await ledger.pictures.count(PictureState.RAW):
        decoders = PictureDecoders(1)
        try:
            with console.status(f"re-encoding {left} pictures stored by an earlier version"):
                await StoredPictures(ledger, PictureStore(ledger.path.with_name("pictures")), decoders).clean_all()
        finally:
            await decoders.close()
    if quarantined := await ledger.pictures.count(PictureState.QUARANTINED):
        console.print(f"Left out: {quarantined} pictures in quarantine, which could not be re-encoded.")
