"""Opening of encoded pictures for tiling and validation, with error messages for the user who sent them.

Format and size are read from the header, so a decompression bomb is refused before any pixel is decoded.
EXIF orientation is not applied, because stored pictures are upright.
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
"""The accepted formats, by their names in Pillow. JPEG includes MPO, which some phones write into a .jpg."""

MAX_PIXELS: Final = 89_000_000
"""The limit on width times height, about 270 MB decoded. It is the maximum of the setting `max_picture_megapixels`, and
below Pillow's own warning limit."""

MAX_SCANS: Final = 100
"""The maximum number of scans in a JPEG. Encoders write about ten; a scan of ten bytes can cost a pass over the whole
picture."""

_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG: Final = b"\xff\xd8"
_START_OF_SCAN: Final = 0xDA
_END: Final = 0xD9
_BARE: Final = (0x01, 0xD8)


def scans(data: bytes) -> int:
    """Count the scans of a JPEG without decoding it, up to `MAX_SCANS` + 1; return 0 for other formats."""
    if not data.startswith(_JPEG):
        return 0
    found, position = 0, 2
    # Segments (ITU-T T.81, B.1.1) have a length; the data after a scan's header runs to the next marker.
    while found <= MAX_SCANS and (marker := _MARKER.search(data, position)):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == _END:
            break
        if kind not in _BARE:
            position += int.from_bytes(data[position : position + 2], "big")
            found += kind == _START_OF_SCAN
    return found


def open_picture(data: bytes) -> Image.Image:
    """Return a picture, or the first frame of an animation, decoded to RGB.

    Raises:
        PictureError: The data is not a picture of an accepted format, is damaged, or has too many pixels.
    """
    with _opened(data) as picture:
        return picture.convert("RGB")


def picture_size(data: bytes) -> tuple[int, int]:
    """Return the width and height in pixels from a picture's header.

    Raises:
        PictureError: The picture cannot be read or is too large; truncated data is not detected.
    """
    with _opened(data) as picture:
        return picture.size


def check_picture(data: bytes) -> tuple[int, int]:
    """Check that a picture can be decoded, and return its width and height in pixels.

    A JPEG is decoded at an eighth of its size: every byte is read, but in a third of the time.

    Raises:
        PictureError: The picture cannot be decoded or is too large.
    """
    with _opened(data) as picture:
        size = picture.size
        picture.draft(None, (1, 1))
        picture.load()
        return size


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture and read its header, converting errors here or in the `with` block to PictureError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"The picture has {width} × {height} pixels, more than {MAX_PIXELS // 10**6} million: "
                    "send a smaller one."
                )
            if scans(data) > MAX_SCANS:
                raise PictureError(
                    f"The picture is a JPEG with more than {MAX_SCANS} scans, which takes minutes to decode: save it "
                    "again without progressive scans."
                )
            yield picture
    except UnidentifiedImageError:
        raise PictureError("The data is not a picture that can be read: send a JPEG, PNG or WebP.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(
            f"The picture has more than {MAX_PIXELS // 10**6} million pixels: send a smaller one."
        ) from None
    # Pillow's decoders report broken data with all of these; a broken PNG raises SyntaxError.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise PictureError(f"The picture is damaged or cut off ({error}): send it again.") from error
