"""Incoming picture bytes: fetched, checked, made fit and kept.

Nothing is trusted but the bytes: the type is read from them, the size in pixels from their header before anything is
decoded. Work on bytes runs off the event loop. Knows what a picture must be; what to say about one that is not, the
refusal carries as a sentence for the catalogues.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import imagehash
import pillow_heif
import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import Document, ExternalReplyInfo, Message, PhotoSize, Sticker
from aiohttp import ClientError
from PIL import Image, ImageOps

from bot.history import Forgotten
from bot.settings import ChatSettings
from bot.telegram import Undelivered
from bot.traces import account
from bot.translation import later
from inference.messages import Picture
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.pictures import PictureStore
from storage.records import StoredPicture

pillow_heif.register_heif_opener()

MAX_BYTES: Final = 20 * 10**6
"""What the Bot API lets a bot download (https://core.telegram.org/bots/api#getfile)."""

LONGEST_SIDE: Final = 4096
"""Larger pictures are kept scaled down: the model sees at most 12 tiles of 448 pixels."""

SUFFIXES: Final = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
"""How names of files of the formats that can be read end."""

Sent = PhotoSize | Document | Sticker
"""How a picture can come."""

_KEPT: Final = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_READ: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF")
_BEGINNINGS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_LOSSLESS: Final = ("PNG", "GIF", "BMP", "TIFF")
_LOSSLESS_PIXELS: Final = 2_000_000
_JPEG_QUALITY: Final = 92
_DECODERS: Final = 2
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


@dataclass(frozen=True, slots=True)
class Checked:
    """A picture that was decoded whole. `phash` is its 64-bit perceptual hash in hex; sizes in pixels."""

    data: bytes
    media_type: str
    width: int
    height: int
    phash: str


class Incoming:
    """Takes pictures in. A few are decoded at a time, so that a flood of large ones does not fill the memory."""

    def __init__(self, ledger: Ledger, pictures: PictureStore, settings: ChatSettings) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._megapixels = settings.max_picture_megapixels
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def take(self, bot: Bot, file: Sent, sender: int, update: int) -> Picture:
        """Fetch, check and keep one picture for an update.

        Raises `PictureRefused`, `Forgotten`, `NotSaved`, or `Undelivered` while Telegram is away.
        """
        data = await _fetched(bot, file)
        async with self._decoders:
            checked = await asyncio.to_thread(check, data, self._megapixels)
        picture = Picture.of(checked.data, checked.media_type)
        try:
            await self._pictures.put(checked.data)
            await self._ledger.add_picture(
                StoredPicture(
                    sha256=picture.sha256,
                    media_type=checked.media_type,
                    width=checked.width,
                    height=checked.height,
                    size=len(checked.data),
                    phash=checked.phash,
                ),
                sender,
                update=update,
            )
            if not self._pictures.path(picture.sha256).is_file():
                await self._pictures.put(checked.data)  # removed between the two: somebody else had it forgotten
        except UnknownRecord as error:
            raise Forgotten from error  # the file goes with the next sweep
        return picture


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


def check(data: bytes, max_megapixels: float) -> Checked:
    """The picture in `data`, upright, opaque, as JPEG, PNG or WebP; the bytes stay as they are where they can.

    Of an animation the first frame counts. Raises `PictureRefused`.
    """
    image = _opened(data, max_megapixels)
    try:
        if max(image.size) > LONGEST_SIDE:
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        image.load()
        if _must_change(image):
            return _changed(image)
        return Checked(data, _KEPT[str(image.format)], *image.size, _phash(image))
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        log.info("picture refused", error=repr(error))
        raise PictureRefused(BROKEN) from error


def _opened(data: bytes, max_megapixels: float) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        image = Image.open(BytesIO(data), formats=_READ)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureRefused(TOO_MANY_PIXELS, limit=f"{max_megapixels:g}") from error
    except Exception as error:  # Pillow cannot make sense of the header
        raise PictureRefused(BROKEN if data.startswith(_BEGINNINGS) else NOT_A_PICTURE) from error
    if image.width * image.height > max_megapixels * 1e6:
        raise PictureRefused(TOO_MANY_PIXELS, limit=f"{max_megapixels:g}")
    return image


def _must_change(image: Image.Image) -> bool:
    upright = image.getexif().get(0x0112, 1) in (0, 1)  # EXIF 2.32, tag Orientation
    still = getattr(image, "n_frames", 1) == 1 or image.format == "MPO"
    plain = image.mode in ("RGB", "L", "P", "1") and not image.has_transparency_data
    return not (image.format in _KEPT and upright and still and plain and max(image.size) <= LONGEST_SIDE)


def _changed(image: Image.Image) -> Checked:
    lossless = image.format in _LOSSLESS and image.width * image.height <= _LOSSLESS_PIXELS
    # A HEIC has been turned as its own boxes say; its EXIF orientation does not count, and pillow-heif has set it to 1.
    upright = ImageOps.exif_transpose(image)
    shown = _opaque(upright)
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    written = BytesIO()
    if lossless:
        shown.save(written, "PNG")
    else:
        shown.save(written, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Checked(written.getvalue(), "image/png" if lossless else "image/jpeg", *shown.size, _phash(shown))


def _opaque(image: Image.Image) -> Image.Image:
    """RGB on white, as people see it; engines would show what lies hidden behind transparency."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def _phash(image: Image.Image) -> str:
    return str(imagehash.phash(image))


async def _fetched(bot: Bot, file: Sent) -> bytes:
    too_large = PictureRefused(TOO_MANY_BYTES, limit=MAX_BYTES // 10**6)
    if (file.file_size or 0) > MAX_BYTES:
        raise too_large
    try:
        path = (await bot.get_file(file.file_id)).file_path
    except TelegramBadRequest as error:
        if "too big" in error.message.lower():
            raise too_large from error
        raise
    for pause in _DOWNLOAD_PAUSES:
        try:
            content = await bot.download_file(path or "", timeout=_DOWNLOAD_SECONDS)
        except (ClientError, TimeoutError, OSError) as error:
            log.warning("download broke off", kind=type(error).__name__, error=account(error))
            await asyncio.sleep(pause)
        else:
            return content.read() if content else b""
    raise Undelivered("a file could not be downloaded")
