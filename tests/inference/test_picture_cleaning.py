"""Cleaning pictures in this process: what is made of each format, what is refused and how early."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from PIL import Image, ImageDraw

from inference.images.decoder import PictureRefused, Refusal
from inference.images.decoder_worker import clean
from tests.support.chatting import png
from tests.support.heic import SIDEWAYS, turned

LIMIT = 50.0

LYING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture lies in a file with that EXIF orientation."""


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The picture in that format."""
    written = io.BytesIO()
    image.save(written, form, **options)
    return written.getvalue()


def drawing(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """White, with a black block in its upper left corner: which side is up can be seen."""
    image = Image.new(mode, (width, height), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), fill="black")
    return image


def decoded(data: bytes) -> Image.Image:
    """What an engine will see."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def brightness(image: Image.Image, x: int, y: int) -> int:
    """The mean of a pixel's channels."""
    pixel = image.convert("RGB").getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(sum(pixel) // 3)


def dark_corners(image: Image.Image) -> list[str]:
    """Where the block of the drawing is."""
    across, down = {"left": 3, "right": image.width - 4}, {"upper": 3, "lower": image.height - 4}
    return [f"{y} {x}" for y in down for x in across if brightness(image, across[x], down[y]) < 60]


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels; what follows is a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/jpeg")])
def test_every_picture_is_encoded_again(form: str, kind: str) -> None:
    """No byte of the file is kept, and the same file gives the same bytes."""
    data = encoded(drawing(), form)
    taken = clean(data, LIMIT)
    assert taken.data != data
    assert taken == clean(data, LIMIT)
    assert (taken.media_type, taken.width, taken.height) == (kind, 64, 48)
    assert len(taken.phash) == 16


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "HEIF"])
def test_other_formats_become_ones_that_engines_read(form: str) -> None:
    """GIF, BMP, TIFF and HEIC look the same afterwards."""
    taken = clean(encoded(drawing(), form), LIMIT)
    assert taken.media_type in ("image/png", "image/jpeg")
    shown = decoded(taken.data)
    assert shown.size == (64, 48)
    assert brightness(shown, 5, 5) < 40 < 215 < brightness(shown, 60, 40)


def test_of_an_animation_the_first_frame_counts() -> None:
    """A GIF of two frames becomes a still picture of its first."""
    data = encoded(drawing(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    shown = Image.open(io.BytesIO(clean(data, LIMIT).data))
    assert getattr(shown, "n_frames", 1) == 1
    assert brightness(shown, 5, 5) < 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_a_turned_photo_is_put_upright(form: str, orientation: int) -> None:
    """EXIF orientation (6: a phone held upright) is carried out once and gone."""
    lying = drawing()
    if orientation in LYING:
        lying = lying.transpose(LYING[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"save_all": True, "append_images": [Image.new("RGB", lying.size)]} if form == "MPO" else {}
    taken = clean(encoded(lying, form, exif=exif, **options), LIMIT)
    assert (taken.width, taken.height) == (64, 48)
    shown = Image.open(io.BytesIO(taken.data))
    assert shown.getexif().get(0x0112, 1) == 1
    assert dark_corners(shown) == ["upper left"]


@pytest.mark.parametrize(
    ("quarters", "mirror", "size", "dark"),
    [
        (0, None, (48, 64), "lower left"),
        (1, None, (64, 48), "lower right"),
        (2, None, (48, 64), "upper right"),
        (3, None, (64, 48), "upper left"),
        (0, 0, (48, 64), "upper left"),
        (0, 1, (48, 64), "lower right"),
        (1, 0, (64, 48), "upper right"),
        (3, 0, (64, 48), "lower left"),
    ],
)
def test_a_heic_is_turned_as_its_own_boxes_say(
    quarters: int, mirror: int | None, size: tuple[int, int], dark: str
) -> None:
    """`irot` and `imir` are carried out once; the EXIF orientation beside them, which phones write too, is not.

    With three quarters to the left it is a phone's upright photo. Without boxes it stays as it lies, for HEIF's
    readers go by the boxes alone.
    """
    taken = clean(turned(SIDEWAYS, quarters, mirror), LIMIT)
    assert (taken.width, taken.height) == size
    shown = Image.open(io.BytesIO(taken.data))
    assert shown.size == size
    assert shown.getexif().get(0x0112, 1) == 1
    assert dark_corners(shown) == [dark]


def test_transparency_becomes_white() -> None:
    """What is hidden behind transparency stays hidden."""
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert decoded(clean(encoded(image, "PNG"), LIMIT).data).getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (20, 20), 0)
    assert decoded(clean(encoded(palette, "PNG", transparency=0), LIMIT).data).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "LA", "1"])
def test_unusual_colours_stay_recognisable(mode: str) -> None:
    """Print colours, 16-bit grey, grey with alpha and bitmaps look as they did."""
    if mode == "I;16":
        image = Image.new("I;16", (64, 48), 65535)
        image.paste(0, (0, 0, 21, 16))
    else:
        image = drawing().convert(mode)
    taken = clean(encoded(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG"), LIMIT)
    shown = decoded(taken.data)
    assert brightness(shown, 5, 5) < 60 < 195 < brightness(shown, 60, 40)


def test_a_large_picture_is_kept_smaller() -> None:
    """Beyond what the model can see a picture is scaled down, its shape kept."""
    taken = clean(encoded(Image.new("RGB", (6000, 3000), "teal"), "JPEG"), LIMIT)
    assert (taken.width, taken.height) == (4096, 2048)
    assert decoded(taken.data).size == (4096, 2048)


def test_like_pictures_have_like_hashes() -> None:
    """The perceptual hash hardly changes with size and format, and much with the content."""
    bits = [
        int(clean(data, LIMIT).phash, 16)
        for data in (
            encoded(drawing(), "PNG"),
            encoded(drawing(128, 96), "JPEG", quality=60),
            encoded(drawing().rotate(180), "PNG"),
        )
    ]
    assert (bits[0] ^ bits[1]).bit_count() <= 4
    assert (bits[0] ^ bits[2]).bit_count() >= 16


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am a text\n" * 50, b"%PDF-1.7", b"\xff\xd8", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["empty", "text", "pdf", "two bytes of JPEG", "svg"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """The bytes decide, whatever the file is called."""
    with pytest.raises(PictureRefused) as refused:
        clean(data, LIMIT)
    assert refused.value.reason == Refusal.NOT_A_PICTURE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.95])
def test_a_truncated_picture_is_refused(form: str, kept: float) -> None:
    """A part of a file is not a part of a picture, wherever it was cut."""
    data = encoded(Image.effect_noise((200, 200), 80), form)
    with pytest.raises(PictureRefused) as refused:
        clean(data[: int(len(data) * kept)], LIMIT)
    assert refused.value.reason == Refusal.BROKEN


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (8000, 6300), (500_000, 500_000)])
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    """A picture that would fill the memory costs next to none."""
    data = huge_png(width, height)
    tracemalloc.start()
    try:
        with pytest.raises(PictureRefused) as refused:
            clean(data, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert refused.value.reason == Refusal.TOO_MANY_PIXELS


def test_the_limit_of_pixels_is_a_setting() -> None:
    """What is over another limit is refused as well."""
    with pytest.raises(PictureRefused):
        clean(png(200, 200), 0.01)
    assert clean(png(100, 100), 0.01).width == 100
