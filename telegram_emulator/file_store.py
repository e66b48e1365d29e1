"""An in-memory file store that resizes photos as Telegram does and keeps other files unchanged.

A photo is stored as a JPEG with sides of at most 1280 px, along with smaller copies. A photo that is
already such a JPEG is stored byte for byte. Documents and stickers are never changed.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import mimetypes
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePath

from PIL import Image, ImageOps

from telegram_emulator.api_errors import Json, api_error

MAX_PHOTO_BYTES = 10 * 2**20
MAX_DOWNLOAD_BYTES = 20 * 2**20  # bots may download files of up to 20 MB (core.telegram.org/bots/api#getfile)
_ANYTHING = "application/octet-stream"
_SIDES = (90, 320, 800, 1280)  # Telegram's sizes s, m, x and y
_MAX_PIXELS = 80_000_000
_SMALL = 2**17  # bytes; smaller photos are resized without a thread


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A stored file.

    `path` is the file path that getFile returns. Files with identical content have the same `unique_id`.
    """

    id: str
    unique_id: str
    path: str
    name: str
    media_type: str
    data: bytes = field(repr=False)


class FileStore:
    """An in-memory store of files by ID."""

    def __init__(self) -> None:
        self._by_id: dict[str, StoredFile] = {}
        self._photos: dict[str, list[Json]] = {}
        self._numbers = itertools.count()

    def by_id(self, file_id: str) -> StoredFile | None:
        """Return the file with ID `file_id`, or None if it does not exist."""
        return self._by_id.get(file_id)

    def by_path(self, path: str) -> StoredFile | None:
        """Return the file at a path that getFile has returned, or None for any other path."""
        return self._by_id.get(PurePath(path).stem)

    def describe(self, file_id: str) -> Json:
        """Return the Bot API `File` object for the file with ID `file_id`.

        Raises:
            BotApiError: The ID is unknown, or the file is larger than 20 MB.
        """
        if not file_id:
            raise api_error("file_id not specified")
        file = self._by_id.get(file_id)
        if file is None:
            raise api_error("wrong file_id or the file is temporarily unavailable")
        if len(file.data) > MAX_DOWNLOAD_BYTES:
            raise api_error("file is too big")
        return {**_reference(file), "file_path": file.path}

    def add_document(self, data: bytes, name: str, media_type: str = "") -> Json:
        """Store a document and return its Bot API `Document` object.

        Raises:
            BotApiError: `data` is empty.
        """
        if not data:
            raise api_error("file must be non-empty")
        kind = media_type if media_type not in ("", _ANYTHING) else mimetypes.guess_type(name)[0] or _ANYTHING
        file = self._keep(data, "documents", name, kind)
        return {"file_name": name, "mime_type": kind, **_reference(file)}

    def add_sticker(self, data: bytes, media_type: str = "") -> Json:
        """Store a sticker and return its Bot API `Sticker` object.

        `media_type` decides whether the sticker is static (WebP, the default), animated (TGS) or video (WebM).
        """
        animated, video = media_type == "application/x-tgsticker", media_type == "video/webm"
        suffix = "tgs" if animated else "webm" if video else "webp"
        file = self._keep(data, "stickers", f"sticker.{suffix}", media_type or "image/webp")
        side = {"width": 512, "height": 512}
        kind = {"type": "regular", "is_animated": animated, "is_video": video, "emoji": "🙂", "set_name": "Samples"}
        return {**kind, **side, **_reference(file)}

    async def add_photo(self, data: bytes) -> list[Json]:
        """Store a photo and return its Bot API `PhotoSize` objects, smallest first.

        Raises:
            BotApiError: `data` is empty, larger than 10 MB or not a picture, or Telegram does not accept the
                picture's dimensions.
        """
        if len(data) > MAX_PHOTO_BYTES:
            raise api_error(
                f"file of size {len(data)} bytes is too big for a photo; the maximum size is {MAX_PHOTO_BYTES} bytes"
            )
        if not data:
            raise api_error("file must be non-empty")
        digest = sha256(data).hexdigest()
        if digest not in self._photos:
            sizes = _sizes(data) if len(data) < _SMALL else await asyncio.to_thread(_sizes, data)
            self._photos[digest] = [self._keep_size(*size) for size in sizes]
        return self._photos[digest]

    def add_broken_photo(self, data: bytes) -> list[Json]:
        """Store `data` as a photo without decoding it, so that tests can send damaged pictures to the bot."""
        return [self._keep_size(data, 1280, 960)]

    def _keep_size(self, data: bytes, width: int, height: int) -> Json:
        file = self._keep(data, "photos", "photo.jpg", "image/jpeg")
        return {**_reference(file), "width": width, "height": height}

    def _keep(self, data: bytes, folder: str, name: str, media_type: str) -> StoredFile:
        file_id = f"{folder[:2]}{next(self._numbers)}-{secrets.token_urlsafe(24)}"
        path = f"{folder}/{file_id}{PurePath(name).suffix.lower() or '.bin'}"
        file = StoredFile(file_id, sha256(data).hexdigest()[:16], path, name, media_type, data)
        self._by_id[file_id] = file
        return file


def _reference(file: StoredFile) -> Json:
    return {"file_id": file.id, "file_unique_id": file.unique_id, "file_size": len(file.data)}


def _sizes(data: bytes) -> list[tuple[bytes, int, int]]:
    """Encode a photo in Telegram's sizes.

    Returns:
        For each size, smallest first, the encoded data and the width and height in pixels.

    Raises:
        BotApiError: `data` is not a picture, or Telegram does not accept its dimensions.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > _MAX_PIXELS or max(width, height) > 20 * min(width, height):
                raise api_error("PHOTO_INVALID_DIMENSIONS")
            unchanged = opened.format == "JPEG" and opened.mode in {"RGB", "L"} and max(opened.size) <= _SIDES[-1]
            unchanged = unchanged and opened.getexif().get(0x0112, 1) == 1
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise api_error("IMAGE_PROCESS_FAILED") from None
    sizes: list[tuple[bytes, int, int]] = []
    for side in _SIDES:
        final = max(picture.size) <= side or side == _SIDES[-1]
        if final and unchanged:
            sizes.append((data, *picture.size))
        else:
            copy = picture.copy()
            copy.thumbnail((side, side), Image.Resampling.LANCZOS)
            encoded = io.BytesIO()
            copy.save(encoded, "JPEG", quality=87)
            sizes.append((encoded.getvalue(), *copy.size))
        if final:
            break
    return sizes
