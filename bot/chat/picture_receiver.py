"""Download, re-encoding in a child process, and storage of pictures.

Files from users are never decoded in this process, and only the re-encoded picture is kept (see
`inference.images.decoder_worker`). The bytes in memory and the number of decodings are limited, both
in total and for each user, so that costly files delay the sender's own pictures before anyone else's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiohttp import ClientError

from bot.chat.errors import DeletedMeanwhile, Refused
from bot.chat.question import PictureFile
from bot.i18n import later
from bot.live_settings import LiveSettings
from bot.redaction import error_text
from bot.telegram.errors import Undelivered
from inference.images.decoder import PictureDecoders
from inference.images.decoder_protocol import CleanPicture, DecodeError, Refusal
from inference.messages import Picture
from storage.chat_records import StoredPicture
from storage.errors import NotSaved, UnknownRecord
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from storage.translatable_reason import Reason

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_BYTES: Final = 20 * 10**6
"""The largest file that a bot can download (https://core.telegram.org/bots/api#getfile)."""

BYTES_IN_FLIGHT: Final = 3 * MAX_BYTES
"""Memory for files that are being downloaded or are waiting for a decoder. One user may use at most `MAX_BYTES`."""

DECODERS: Final = 2

DEATHS: Final = 2
"""A file that has killed its decoder this many times is refused from then on."""

_DOWNLOAD_SECONDS: Final = 120
_DOWNLOAD_PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0)

log = structlog.get_logger()


_TOO_MANY_BYTES: Final = later(
    "This file is larger than {limit} MB, more than Telegram lets me download. Send a smaller one, or send it as a "
    "photo instead of a file."
)
_TOO_MANY_STORED: Final = later(
    "I already store {limit} MB of your pictures, the limit for one person. /delete_my_data deletes them, and "
    "everything else I store about you."
)
_SENTENCES: Final = {
    Refusal.NOT_A_PICTURE: later(
        "I can't open this file as a picture. Send a photo, or a JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC file."
    ),
    Refusal.BROKEN: later("This picture is damaged or incomplete, so I can't open it. Please send it again."),
    Refusal.TOO_MANY_PIXELS: later(
        "This picture is too large: the limit is {limit} million pixels. Make it smaller and send it again."
    ),
    Refusal.TOO_COSTLY: later(
        "This picture takes too much time or memory to open. Send it as a photo, or make it smaller."
    ),
}


@dataclass(eq=False)
class PictureReceiver:
    """A receiver that downloads the pictures in users' messages and stores them re-encoded."""

    bot: Bot
    ledger: Ledger
    store: PictureStore
    decoders: PictureDecoders
    settings: LiveSettings

    def __post_init__(self) -> None:
        self._memory = FairSemaphore(BYTES_IN_FLIGHT, MAX_BYTES)
        self._decoding = FairSemaphore(DECODERS, 1)

    async def receive_all(self, files: Sequence[PictureFile], sender: int, update: int) -> tuple[Picture, ...]:
        """Receive pictures concurrently. If one fails, the others are cancelled.

        Raises the same errors as `receive`.
        """
        tasks = [asyncio.create_task(self.receive(file, sender, update)) for file in files]
        try:
            return tuple([await task for task in tasks])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def receive(self, file: PictureFile, sender: int, update: int) -> Picture:
        """Download, re-encode and store a picture.

        Raises:
            Refused: The picture cannot be read, or is too large or too costly to decode, or the sender has
                reached the limit for stored pictures.
            DeletedMeanwhile: The sender's data was deleted before the picture was stored.
            NotSaved: The disk is full.
            Undelivered: Telegram cannot be reached.
        """
        if await self.ledger.pictures.decoder_deaths(file.file_unique_id) >= DEATHS:
            raise Refused(Reason(_SENTENCES[Refusal.TOO_COSTLY]))
        most_stored = self.settings.now.limits.picture_megabytes_per_person
        if sender not in self.settings.now.telegram.admins and (
            0 < most_stored * 10**6 <= await self.ledger.pictures.bytes_from(sender)
        ):
            raise Refused(Reason(_TOO_MANY_STORED, limit=most_stored))
        if (file.file_size or 0) > MAX_BYTES:
            raise _too_large()
        async with self._memory.acquired(sender, file.file_size or MAX_BYTES):
            data = await self._download(file)
            async with self._decoding.acquired(sender, 1):
                clean = await self._clean(data, file)
        return await self._store(clean, sender, update)

    async def _download(self, file: PictureFile) -> bytes:
        try:
            path = (await self.bot.get_file(file.file_id)).file_path
        except TelegramBadRequest as error:
            if "too big" in error.message.lower():
                raise _too_large() from error
            raise
        for pause in _DOWNLOAD_PAUSES:
            content = _Bounded()
            try:
                await self.bot.download_file(path or "", content, timeout=_DOWNLOAD_SECONDS)
            except (ClientError, TimeoutError, OSError) as error:
                log.warning("download interrupted", kind=type(error).__name__, error=error_text(error))
                await asyncio.sleep(pause)
            else:
                return content.getvalue()
        raise Undelivered("a file could not be downloaded")

    async def _clean(self, data: bytes, file: PictureFile) -> CleanPicture:
        megapixels = self.settings.now.chat.max_picture_megapixels
        try:
            return await self.decoders.clean(data, megapixels)
        except DecodeError as refusal:
            log.info("picture refused", reason=str(refusal), killed=refusal.killed)
            if refusal.killed:
                try:
                    await self.ledger.pictures.add_decoder_death(file.file_unique_id)
                except NotSaved as error:
                    log.warning("decoder crash not recorded", error=str(error))
            raise Refused(Reason(_SENTENCES[refusal.reason], limit=f"{megapixels:g}")) from refusal

    async def _store(self, clean: CleanPicture, sender: int, update: int) -> Picture:
        picture = Picture.of(clean.data, clean.media_type)
        size = len(clean.data)
        row = StoredPicture(picture.sha256, clean.media_type, clean.width, clean.height, size, clean.phash)
        try:
            await self.store.put(clean.data)
            await self.ledger.pictures.add(row, sender, update=update)
            if not self.store.path(picture.sha256).is_file():
                await self.store.put(clean.data)  # an erasure removed the file before its row was added
        except UnknownRecord as error:
            raise DeletedMeanwhile from error  # the next sweep removes the file
        return picture


class FairSemaphore:
    """A weighted semaphore with a limit for all users together and a limit for each user.

    All users together hold at most `total`, and a single user at most `each`. Requests are granted in order
    of arrival, but a user who has reached `each` waits without holding up others.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._used: defaultdict[int, int] = defaultdict(int)
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def acquired(self, person: int, weight: int) -> AsyncIterator[None]:
        """Hold `weight`, or `each` if that is less, for `person` while the block runs."""
        weight = min(weight, self._each)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((person, weight, granted))
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._used[person] -= weight
                if not self._used[person]:
                    del self._used[person]
            self._grant()

    def _grant(self) -> None:
        """Grant the waiting requests that fit, in order.

        A request over its user's own limit is skipped; any other request that does not fit holds up all later
        ones.
        """
        waiting = deque[tuple[int, int, asyncio.Future[None]]]()
        free = self._total - sum(self._used.values())
        for person, weight, granted in self._waiting:
            if granted.done():  # cancelled
                continue
            if self._used[person] + weight > self._each:
                waiting.append((person, weight, granted))
            elif weight > free:
                free = 0
                waiting.append((person, weight, granted))
            else:
                free -= weight
                self._used[person] += weight
                granted.set_result(None)
        self._waiting = waiting


class _Bounded(BytesIO):
    """A buffer for at most `MAX_BYTES`, regardless of the size that the sender or a server has declared."""

    def write(self, block: ReadableBuffer, /) -> int:
        if self.tell() + memoryview(block).nbytes > MAX_BYTES:
            raise _too_large()
        return super().write(block)


def _too_large() -> Refused:
    return Refused(Reason(_TOO_MANY_BYTES, limit=MAX_BYTES // 10**6))
