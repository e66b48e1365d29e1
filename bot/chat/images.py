"""Incoming pictures: fetched, cleaned by a child process, and kept.

Nothing that a stranger sent is decoded in this process, and nothing but the clean picture is kept (see
`inference.images.decoder_worker`). What is fetched and decoded at a time is bounded, over all people and for each of
them, so that one who sends costly files delays their own pictures first.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import Document, ExternalReplyInfo, Message, PhotoSize, Sticker
from aiohttp import ClientError

from bot.chat.history import Forgotten
from bot.i18n import later
from bot.redaction import account
from bot.settings import ChatSettings, LimitsSettings
from bot.telegram.client import Undelivered
from inference.images.decoder import PictureDecoders
from inference.images.decoder_protocol import CleanPicture, DecodeError, Refusal
from inference.messages import Picture
from storage.errors import NotSaved, UnknownRecord
from storage.ledger import Ledger
from storage.picture_store import PictureStore
from storage.records import StoredPicture

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_BYTES: Final = 20 * 10**6
"""What the Bot API lets a bot download (https://core.telegram.org/bots/api#getfile)."""

BYTES_IN_FLIGHT: Final = 3 * MAX_BYTES
"""Files that are fetched or wait for a decoder take at most so much memory together, and `MAX_BYTES` of one person."""

DECODERS: Final = 2

DEATHS: Final = 2
"""A file that has killed its decoder so often is not decoded any more."""

SUFFIXES: Final = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
"""How names of files of the formats that can be read end."""

Sent = PhotoSize | Document | Sticker
"""How a picture can come."""

_DOWNLOAD_SECONDS: Final = 120
_DOWNLOAD_PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0)

log = structlog.get_logger()


class PictureRefused(Exception):
    """The sender can mend it. `sentence` and `values` say how, in the sender's language."""

    def __init__(self, sentence: str, **values: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.values = values


NOT_A_PICTURE: Final = later(
    "I cannot read this file as a picture. Please send a photo, or a JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC file."
)
BROKEN: Final = later("This picture is damaged or incomplete, so I cannot open it. Please send it once more.")
TOO_MANY_BYTES: Final = later(
    "This file is larger than {limit} MB, more than Telegram lets me fetch. Please send a smaller one, or send it as a "
    "photo instead of a file."
)
TOO_MANY_PIXELS: Final = later(
    "This picture is too large: I take up to {limit} million pixels. Please make it smaller and send it again."
)
TOO_COSTLY: Final = later(
    "Opening this picture takes more time or memory than I may use. Please send it as a photo, or make it smaller."
)
TOO_MANY_STORED: Final = later(
    "I already keep {limit} MB of your pictures, the most I keep for one person. With /delete_my_data you can delete "
    "them."
)

_SENTENCES: Final = {
    Refusal.NOT_A_PICTURE: NOT_A_PICTURE,
    Refusal.BROKEN: BROKEN,
    Refusal.TOO_MANY_PIXELS: TOO_MANY_PIXELS,
    Refusal.TOO_COSTLY: TOO_COSTLY,
}


class Incoming:
    """Takes pictures in."""

    def __init__(
        self,
        ledger: Ledger,
        pictures: PictureStore,
        decoders: PictureDecoders,
        chat: ChatSettings,
        limits: LimitsSettings,
        *,
        admins: Collection[int] = (),
    ) -> None:
        """`admins` may store any number of pictures."""
        self._ledger = ledger
        self._pictures = pictures
        self._decoders = decoders
        self._megapixels = chat.max_picture_megapixels
        self._most_stored = limits.picture_megabytes_per_person * 10**6
        self._admins = frozenset(admins)
        self._room = Room(BYTES_IN_FLIGHT, MAX_BYTES)
        self._turns = Room(DECODERS, 1)

    async def take(self, bot: Bot, file: Sent, sender: int, update: int) -> Picture:
        """Fetch, clean and keep one picture for an update.

        Raises `PictureRefused`, `Forgotten`, `NotSaved`, or `Undelivered` while Telegram is away.
        """
        if await self._ledger.pictures.decoder_deaths(file.file_unique_id) >= DEATHS:
            raise PictureRefused(TOO_COSTLY)
        if sender not in self._admins and 0 < self._most_stored <= await self._ledger.pictures.bytes_from(sender):
            raise PictureRefused(TOO_MANY_STORED, limit=self._most_stored // 10**6)
        if (file.file_size or 0) > MAX_BYTES:
            raise _too_large()
        async with self._room.taken(sender, file.file_size or MAX_BYTES):
            data = await _fetched(bot, file)
            async with self._turns.taken(sender, 1):
                cleaned = await self._cleaned(data, file)
        return await self._kept(cleaned, sender, update)

    async def _cleaned(self, data: bytes, file: Sent) -> CleanPicture:
        try:
            return await self._decoders.clean(data, self._megapixels)
        except DecodeError as refusal:
            log.info("picture refused", reason=str(refusal), killed=refusal.killed)
            if refusal.killed:
                await self._note_death(file)
            raise PictureRefused(_SENTENCES[refusal.reason], limit=f"{self._megapixels:g}") from refusal

    async def _note_death(self, file: Sent) -> None:
        try:
            await self._ledger.pictures.add_decoder_death(file.file_unique_id)
        except NotSaved as error:
            log.warning("a picture that killed its decoder was not noted", error=str(error))

    async def _kept(self, cleaned: CleanPicture, sender: int, update: int) -> Picture:
        picture = Picture.of(cleaned.data, cleaned.media_type)
        try:
            await self._pictures.put(cleaned.data)
            await self._ledger.pictures.add(
                StoredPicture(
                    sha256=picture.sha256,
                    media_type=cleaned.media_type,
                    width=cleaned.width,
                    height=cleaned.height,
                    size=len(cleaned.data),
                    phash=cleaned.phash,
                ),
                sender,
                update=update,
            )
            if not self._pictures.path(picture.sha256).is_file():
                await self._pictures.put(cleaned.data)  # removed between the two: its last sender had it deleted
        except UnknownRecord as error:
            raise Forgotten from error  # the file goes with the next sweep
        return picture


class Room:
    """A weighted semaphore: at most `total` over all people and `each` for one, first come, first served.

    Who waits for their own share does not stand in the way of others.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._used: defaultdict[int, int] = defaultdict(int)
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, person: int, weight: int) -> AsyncIterator[None]:
        """Have `weight` of the room for the block; more than one person may have counts as that."""
        weight = min(weight, self._each)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((person, weight, place))
        self._admit()
        try:
            await place
            yield
        finally:
            if place.done() and not place.cancelled():
                self._used[person] -= weight
                if not self._used[person]:
                    del self._used[person]
            self._admit()

    def _admit(self) -> None:
        """Let in who fits, in order: one who is at their own limit is passed over, the next of the others waits."""
        left = deque[tuple[int, int, asyncio.Future[None]]]()
        free = self._total - sum(self._used.values())
        for person, weight, place in self._waiting:
            if place.done():  # cancelled
                continue
            if self._used[person] + weight > self._each:
                left.append((person, weight, place))
            elif weight > free:
                free = 0
                left.append((person, weight, place))
            else:
                free -= weight
                self._used[person] += weight
                place.set_result(None)
        self._waiting = left


def picture_of(message: Message | ExternalReplyInfo) -> Sent | None:
    """The message's picture, a photo in its largest size; None for one without. Stickers that move are none.

    Of a message in another chat that somebody replies to Telegram tells as much.
    """
    if message.photo:
        return max(message.photo, key=lambda size: size.width * size.height)
    if message.sticker:
        return None if message.sticker.is_animated or message.sticker.is_video else message.sticker
    return message.document if message.document and _claims_to_be_one(message.document) else None


def _claims_to_be_one(document: Document) -> bool:
    """Whether a file is called a picture; what it is, its bytes tell later."""
    name = (document.file_name or "").lower()
    return (document.mime_type or "").startswith("image/") or name.endswith(SUFFIXES)


class _Bounded(BytesIO):
    """Takes `MAX_BYTES`, whatever size the sender or a server has claimed."""

    def write(self, block: ReadableBuffer, /) -> int:
        if self.tell() + memoryview(block).nbytes > MAX_BYTES:
            raise _too_large()
        return super().write(block)


def _too_large() -> PictureRefused:
    return PictureRefused(TOO_MANY_BYTES, limit=MAX_BYTES // 10**6)


async def _fetched(bot: Bot, file: Sent) -> bytes:
    try:
        path = (await bot.get_file(file.file_id)).file_path
    except TelegramBadRequest as error:
        if "too big" in error.message.lower():
            raise _too_large() from error
        raise
    for pause in _DOWNLOAD_PAUSES:
        content = _Bounded()
        try:
            await bot.download_file(path or "", content, timeout=_DOWNLOAD_SECONDS)
        except (ClientError, TimeoutError, OSError) as error:
            log.warning("download broke off", kind=type(error).__name__, error=account(error))
            await asyncio.sleep(pause)
        else:
            return content.getvalue()
    raise Undelivered("a file could not be downloaded")
