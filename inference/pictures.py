"""Encoded bytes to a picture the model can tile, or a sentence about why not.

Checks what costs nothing first: a picture's type and size stand in its header, so a decompression bomb is refused
before a single pixel is decoded. Turning a picture by its EXIF data is left to whoever stores it: engines see
pictures as they are encoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, UnidentifiedImageError

from inference.messages import PictureError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pillow's names of what is accepted; JPEG includes MPO, what some phones put into a .jpg."""

MAX_PIXELS: Final = 80_000_000
"""Width times height; some 240 MB decoded. Below Pillow's own warning limit."""


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
