"""Opening encoded pictures, and the errors for invalid data."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from bot.settings import ChatSettings
from inference.images.opening import open_picture, picture_size
from inference.messages import PictureError


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a gradient picture encoded in Pillow's format `form`."""
    into = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(into, form)
    return into.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Return a PNG without pixel data whose header declares the given size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_accepted_formats_open_in_rgb(form: str, mode: str) -> None:
    """Pictures in every accepted format and colour mode are decoded completely and converted to RGB."""
    if (form, mode) in {("JPEG", "P"), ("WEBP", "P")}:
        mode = "RGB"
    picture = open_picture(encoded(form, mode))
    assert (picture.mode, picture.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture"),
        (b"This is a text named .jpg", "not a picture"),
        (encoded("TIFF"), "not a picture"),
        (encoded("JPEG", size=(400, 300))[:-600], "damaged or cut off"),
        (encoded("PNG", size=(400, 300))[:-600], "damaged or cut off"),
        (encoded("WEBP")[:40], "not a picture|damaged or cut off"),
        (png_of(40, 30), "damaged or cut off"),
        (png_of(20_000, 20_000), "pixels"),
        (png_of(8_900, 10_001), "pixels"),
    ],
    ids=["empty", "text", "tiff", "cut jpeg", "cut png", "cut webp", "no pixels", "bomb", "large"],
)
def test_other_data_is_refused_with_a_message(data: bytes, message: str) -> None:
    """Invalid data is refused with a message; an oversized picture is refused before its pixels are decoded."""
    with pytest.raises(PictureError, match=message):
        open_picture(data)


def test_every_size_that_the_setting_allows_is_opened() -> None:
    """The largest size that `chat.max_picture_megapixels` allows is accepted, by the picture's header."""
    (most,) = (each.le for each in ChatSettings.model_fields["max_picture_megapixels"].metadata if hasattr(each, "le"))
    assert picture_size(png_of(10_000, int(most * 100))) == (10_000, int(most * 100))
