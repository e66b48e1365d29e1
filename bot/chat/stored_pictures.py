"""Read pictures that are stored, re-encoding those that earlier versions stored as they were sent."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from inference.images.decoder import PictureDecoders
from inference.images.decoder_protocol import DecodeError
from inference.images.opening import MAX_PIXELS
from inference.messages import Picture
from storage.chat_records import PictureState, StoredPicture
from storage.errors import Damaged, UnknownRecord
from storage.ledger import Ledger
from storage.picture_store import PictureStore

log = structlog.get_logger()


class StoredPictures:
    """Reads the picture store. It returns no picture in the form in which a stranger sent it."""

    def __init__(self, ledger: Ledger, pictures: PictureStore, decoders: PictureDecoders) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._decoders = decoders
        self._one_at_a_time = asyncio.Lock()

    async def get(self, sha256: str) -> Picture:
        """Return a picture by its present or its former name.

        Raises:
            UnknownRecord: It cannot be re-encoded, is missing, or was deleted.
            StorageError: It cannot be read, or its re-encoded form cannot be written.
        """
        picture = await self._ledger.pictures.get(sha256)
        if picture.state is PictureState.RAW:
            await self.clean(picture.sha256)
            picture = await self._ledger.pictures.get(picture.sha256)
        if picture.state is not PictureState.CLEAN:
            raise UnknownRecord(f"The picture {picture.sha256} is in quarantine: it could not be re-encoded.")
        return Picture(await self._pictures.get(picture.sha256), picture.sha256, picture.media_type)

    async def clean(self, former: str) -> None:
        """Replace a picture that was stored as sent by a re-encoded one, or quarantine it if that fails.

        Exchanges keep the former name as well as the new one, because their prompts' hashes were made with it.
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
