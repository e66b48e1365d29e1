"""Files in memory by file id: photos in several sizes as Telegram makes them, documents and stickers unchanged.

A photo becomes a JPEG of at most 1280 px with smaller copies; one that already is such a JPEG keeps its bytes.
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
    """A file as bots see it. `path` is what getFile returns; `unique_id` is the same for the same bytes."""

    id: str
    unique_id: str
    path: str
    name: str
    media_type: str
    data: bytes = field(repr=False)


class FileStore:
    """All files, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, StoredFile] = {}
        self._photos: dict[str, list[Json]] = {}
        self._numbers = itertools.count()

    def by_id(self, file_id: str) -> StoredFile | None:
        """Return the file with this id, or None if there is none."""
        return self._by_id.get(file_id)

    def by_path(self, path: str) -> StoredFile | None:
        """Return the file at a path that getFile has given, or None if there is none."""
        return self._by_id.get(PurePath(path).stem)

    def describe(self, file_id: str) -> Json:
        """Return a Bot API `File`. Raises `BotApiError` for an unknown id and for a file above 20 MB."""
        if not file_id:
            raise api_error("file_id not specified")
        file = self._by_id.get(file_id)
        if file is None:
            raise api_error("wrong file_id or the file is temporarily unavailable")
        if len(file.data) > MAX_DOWNLOAD_BYTES:
            raise api_error("file is too big")
        return {**_reference(file), "file_path": file.path}

    def add_document(self, data: bytes, name: str, media_type: str = "") -> Json:
        """Keep a document and return its Bot API `Document`. Raises `BotApiError` for an empty one."""
        if not data:
            raise api_error("file must be non-empty")
        kind = media_type if media_type not in ("", _ANYTHING) else mimetypes.guess_type(name)[0] or _ANYTHING
        file = self._keep(data, "documents", name, kind)
        return {"file_name": name, "mime_type": kind, **_reference(file)}

    def add_sticker(self, data: bytes, media_type: str = "") -> Json:
        """Keep a sticker and return its Bot API `Sticker`: still (WebP), animated (TGS) or a video (WebM)."""
        animated, video = media_type == "application/x-tgsticker", media_type == "video/webm"
        suffix = "tgs" if animated else "webm" if video else "webp"
        file = self._keep(data, "stickers", f"sticker.{suffix}", media_type or "image/webp")
        side = {"width": 512, "height": 512}
        kind = {"type": "regular", "is_animated": animated, "is_video": video, "emoji": "🙂", "set_name": "Samples"}
        return {**kind, **side, **_reference(file)}

    async def add_photo(self, data: bytes) -> list[Json]:
        """Keep a photo and return its Bot API `PhotoSize` list, smallest first.

        Raises `BotApiError` above 10 MB, for anything but a picture, and for dimensions that Telegram does not accept.
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
        """Keep bytes as a photo without decoding them, so that a bot downloads a damaged picture."""
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
    """Return the encoded sizes of a photo with width and height in pixels, smallest first."""
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
