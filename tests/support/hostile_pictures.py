"""Generated hostile picture files that are small to send but costly to open."""

from __future__ import annotations

import io
import struct
from typing import Any, Final

import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()

GPS: Final = b"51.4779,-0.0015 and a serial number"
"""A GPS position and a serial number, as in the metadata of a phone's photos."""


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return `image` encoded in the format `form`."""
    written = io.BytesIO()
    image.save(written, form, **options)
    return written.getvalue()


def many_scans(count: int, side: int = 7000) -> bytes:
    """Return a progressive JPEG that repeats its last scan, which changes nothing, `count` times."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=90)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def many_directories(count: int) -> bytes:
    """Return a TIFF with one small picture, followed by a chain of `count` directories without entries."""
    data = encoded(Image.new("RGB", (8, 8), "red"), "TIFF")
    start = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, start)[0]
    link, end = start + 2 + 12 * entries, len(data) + len(data) % 2
    chain = b"".join(struct.pack("<HI", 0, end + 6 * (number + 1)) for number in range(count - 1))
    whole = data[:link] + struct.pack("<I", end) + data[link + 4 :]
    return whole.ljust(end, b"\0") + chain + struct.pack("<HI", 0, 0)


def large_webp() -> bytes:
    """Return a transparent WebP picture of 50 million pixels in two kilobytes."""
    return encoded(Image.new("RGBA", (16383, 3051), (9, 9, 9, 100)), "WEBP", lossless=True, quality=0, method=0)


def much_metadata(size: int = 19_900_000) -> bytes:
    """Return a small photo with about `size` bytes of comments."""
    data = encoded(Image.new("RGB", (640, 480), "teal"), "JPEG")
    body = bytes(65_533)
    block = b"\xff\xfe" + struct.pack(">H", 65_535) + body
    return data[:2] + block * (size // len(block)) + data[2:]


def located(width: int = 640, height: int = 480, colour: str = "teal") -> bytes:
    """Return a photo whose EXIF metadata and comment contain its location and a serial number."""
    exif = Image.Exif()
    exif[0x010E] = GPS.decode()  # ImageDescription
    exif[0x8825] = {1: "N", 2: (51.0, 28.0, 40.0), 3: "W", 4: (0.0, 0.0, 5.0)}  # the GPS directory
    return encoded(Image.new("RGB", (width, height), colour), "JPEG", exif=exif, comment=GPS)
