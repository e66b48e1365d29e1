"""Encoded bytes to a picture the model can tile, or a sentence about why not.

Checks what costs nothing first: a picture's type and size stand in its header, so a decompression bomb is refused
before a single pixel is decoded. Turning a picture by its EXIF data is left to whoever stores it: engines see
pictures as they are encoded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, UnidentifiedImageError

from inference.messages import PictureError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pillow's names of what is accepted; JPEG includes MPO, what some phones put into a .jpg."""

MAX_PIXELS: Final = 80_000_000
"""Width times height; some 240 MB decoded. Below Pillow's own warning limit."""

MOST_SCANS: Final = 100
"""Scans of a JPEG. Encoders write about ten; each costs as much as the whole picture, and may be ten bytes long."""

_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG: Final = b"\xff\xd8"
_START_OF_SCAN: Final = 0xDA
_END: Final = 0xD9
_BARE: Final = (0x01, 0xD8)


def scans(data: bytes) -> int:
    """How many scans a JPEG has, counted without decoding up to one more than `MOST_SCANS`; 0 for other formats."""
    if not data.startswith(_JPEG):
        return 0
    found, place = 0, 2
    # Segments (ITU-T T.81, B.1.1) have a length; the data behind a scan's header runs to the next marker.
    while found <= MOST_SCANS and (marker := _MARKER.search(data, place)):
        kind, place = data[marker.end() - 1], marker.end()
        if kind == _END:
            break
        if kind not in _BARE:
            place += int.from_bytes(data[place : place + 2], "big")
            found += kind == _START_OF_SCAN
    return found


def open_picture(data: bytes) -> Image.Image:
    """The picture in RGB, wholly decoded (of an animation the first frame).

    Raises PictureError for bytes that are no picture, of another format, cut off, or of too many pixels.
    """
    with _opened(data) as picture:
        return picture.convert("RGB")


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, out of the header. Raises PictureError as `open_picture`, but for cut off data."""
    with _opened(data) as picture:
        return picture.size


def check_picture(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of a picture that was read to its end. Raises PictureError as `open_picture`.

    A JPEG is decoded at an eighth of its size: every byte is read, in a third of the time.
    """
    with _opened(data) as picture:
        size = picture.size
        picture.draft(None, (1, 1))
        picture.load()
        return size


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture with its header read; what goes wrong inside is worded too."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"The picture has {width} × {height} pixels, more than {MAX_PIXELS // 10**6} million: "
                    "send a smaller one."
                )
            if scans(data) > MOST_SCANS:
                raise PictureError(
                    f"The picture is a JPEG of more than {MOST_SCANS} scans, which takes minutes to decode: save it "
                    "anew, without progressive scans."
                )
            yield picture
    except UnidentifiedImageError:
        raise PictureError("The data is not a picture that can be read: send a JPEG, PNG or WebP.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(
            f"The picture has more than {MAX_PIXELS // 10**6} million pixels: send a smaller one."
        ) from None
    # Pillow's decoders report broken data in all of these; a broken PNG is a SyntaxError.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise PictureError(f"The picture is damaged or cut off ({error}): send it again.") from error
