"""Cleaning pictures: the result for each format, and the files that are refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image, ImageDraw

from inference.images.decoder_protocol import DecodeError, Refusal
from inference.images.decoder_worker import clean
from tests.support.chatting import png
from tests.support.heic import SIDEWAYS, turned
from tests.support.hostile_pictures import encoded

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
"""How an upright picture is stored in a file with that EXIF orientation."""


def drawing(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Return a white picture with a black block in its upper left corner to show the picture's orientation."""
    image = Image.new(mode, (width, height), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), fill="black")
    return image


def decoded(data: bytes) -> Image.Image:
    """Decode `data` into an RGB picture, as an engine does."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def brightness(image: Image.Image, x: int, y: int) -> int:
    """Return the mean of the channels of the pixel at (`x`, `y`)."""
    pixel = image.convert("RGB").getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(sum(pixel) // 3)


def dark_corners(image: Image.Image) -> list[str]:
    """Return the dark corners of a picture, for example "upper left"."""
    across, down = {"left": 3, "right": image.width - 4}, {"upper": 3, "lower": image.height - 4}
    return [f"{y} {x}" for y in down for x in across if brightness(image, across[x], down[y]) < 60]


def huge_png(width: int, height: int) -> bytes:
    """Return a tiny PNG file whose header declares a picture of `width` × `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/jpeg")])
def test_every_picture_is_re_encoded(form: str, kind: str) -> None:
    """Every picture is re-encoded into different bytes, and the same file always gives the same result."""
    data = encoded(drawing(), form)
    taken = clean(data, LIMIT)
    assert taken.data != data
    assert taken == clean(data, LIMIT)
    assert (taken.media_type, taken.width, taken.height) == (kind, 64, 48)
    assert len(taken.phash) == 16


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "HEIF"])
def test_other_formats_are_converted(form: str) -> None:
    """GIF, BMP, TIFF and HEIC pictures become JPEG or PNG and look the same."""
    taken = clean(encoded(drawing(), form), LIMIT)
    assert taken.media_type in ("image/png", "image/jpeg")
    shown = decoded(taken.data)
    assert shown.size == (64, 48)
    assert brightness(shown, 5, 5) < 40 < 215 < brightness(shown, 60, 40)


def test_an_animation_becomes_its_first_frame() -> None:
    """An animated GIF becomes a still picture of its first frame."""
    data = encoded(drawing(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    shown = Image.open(io.BytesIO(clean(data, LIMIT).data))
    assert getattr(shown, "n_frames", 1) == 1
    assert brightness(shown, 5, 5) < 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_a_rotated_photo_becomes_upright(form: str, orientation: int) -> None:
    """The EXIF orientation of a photo is applied once and removed.

    Orientation 6, for example, is that of a phone held upright.
    """
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
def test_a_heic_is_rotated_by_its_boxes(quarters: int, mirror: int | None, size: tuple[int, int], dark: str) -> None:
    """The `irot` and `imir` boxes of a HEIC picture are applied once, and its EXIF orientation is ignored.

    Phones also write the EXIF orientation, but HEIF readers use only the boxes: without boxes, the picture
    is not rotated. Three 90° turns to the left make the sample picture a phone's upright photo.
    """
    taken = clean(turned(SIDEWAYS, quarters, mirror), LIMIT)
    assert (taken.width, taken.height) == size
    shown = Image.open(io.BytesIO(taken.data))
    assert shown.size == size
    assert shown.getexif().get(0x0112, 1) == 1
    assert dark_corners(shown) == [dark]


def test_transparency_becomes_white() -> None:
    """Transparent pixels become white, so their hidden colours do not become visible."""
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert decoded(clean(encoded(image, "PNG"), LIMIT).data).getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (20, 20), 0)
    assert decoded(clean(encoded(palette, "PNG", transparency=0), LIMIT).data).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "LA", "1"])
def test_unusual_colours_stay_recognizable(mode: str) -> None:
    """CMYK, 16-bit grey, grey with alpha and black-and-white pictures look the same after cleaning."""
    if mode == "I;16":
        image = Image.new("I;16", (64, 48), 65535)
        image.paste(0, (0, 0, 21, 16))
    else:
        image = drawing().convert(mode)
    taken = clean(encoded(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG"), LIMIT)
    shown = decoded(taken.data)
    assert brightness(shown, 5, 5) < 60 < 195 < brightness(shown, 60, 40)


def test_a_large_picture_is_scaled_down() -> None:
    """A picture larger than the model can use is scaled down and keeps its aspect ratio."""
    taken = clean(encoded(Image.new("RGB", (6000, 3000), "teal"), "JPEG"), LIMIT)
    assert (taken.width, taken.height) == (4096, 2048)
    assert decoded(taken.data).size == (4096, 2048)


def test_similar_pictures_have_similar_hashes() -> None:
    """The perceptual hash changes little with a picture's size and format, and strongly with its content."""
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
def test_other_files_are_refused(data: bytes) -> None:
    """A file whose content is not a picture is refused, whatever its name."""
    with pytest.raises(DecodeError) as refused:
        clean(data, LIMIT)
    assert refused.value.reason == Refusal.NOT_A_PICTURE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.95])
def test_a_truncated_picture_is_refused(form: str, kept: float) -> None:
    """A picture file that is truncated at any point is refused as broken."""
    data = encoded(Image.effect_noise((200, 200), 80), form)
    with pytest.raises(DecodeError) as refused:
        clean(data[: int(len(data) * kept)], LIMIT)
    assert refused.value.reason == Refusal.BROKEN


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (8000, 6300), (500_000, 500_000)])
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    """A picture whose header declares too many pixels is refused, and the refusal takes almost no memory."""
    data = huge_png(width, height)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as refused:
            clean(data, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert refused.value.reason == Refusal.TOO_MANY_PIXELS


def test_the_limit_of_pixels_is_a_parameter() -> None:
    """A picture is refused if it exceeds the pixel limit given to `clean`."""
    with pytest.raises(DecodeError):
        clean(png(200, 200), 0.01)
    assert clean(png(100, 100), 0.01).width == 100
