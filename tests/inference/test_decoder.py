"""The picture decoder's child processes: what they return, what ends them, and how they are replaced."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from inference.images import decoder as picture_decoder
from inference.images.decoder import DecoderUnavailable, PictureDecoder, PictureDecoders
from inference.images.decoder_protocol import LONGEST_SIDE, CleanPicture, DecodeError, Refusal
from inference.images.opening import MAX_SCANS, check_picture, open_picture, scans
from inference.messages import PictureError
from tests.support.chatting import until
from tests.support.heic import SIDEWAYS
from tests.support.hostile_pictures import (
    GPS,
    encoded,
    large_webp,
    located,
    many_directories,
    many_scans,
    much_metadata,
)

LIMIT = 50.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[PictureDecoder]:
    with PictureDecoder() as one:
        yield one


def refused(decoder: PictureDecoder, data: bytes) -> DecodeError:
    """Return the error with which the decoder refuses `data`."""
    with pytest.raises(DecodeError) as refusal:
        decoder.clean(data, LIMIT)
    return refusal.value


def plain(picture: CleanPicture) -> bool:
    """Return whether `picture` is a baseline JPEG or a PNG, holds only pixels and has the size it reports."""
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    fine = (image.width, image.height, image.mode) == (picture.width, picture.height, "RGB")
    fine = fine and max(image.size) <= LONGEST_SIDE and len(picture.phash) == 16
    if image.format == "JPEG":
        segments = {picture.data[2:4]}
        return (
            fine
            and picture.media_type == "image/jpeg"
            and b"\xff\xc2" not in picture.data[:1000]
            and (
                segments == {b"\xff\xe0"}
                and not set(image.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            )
            and scans(picture.data) == 1
        )
    return fine and (image.format, picture.media_type, image.info) == ("PNG", "image/png", {})


def test_a_clean_picture_has_no_metadata(decoder: PictureDecoder) -> None:
    """A cleaned picture has no location, comment or colour profile."""
    data = located()
    assert GPS in data
    clean = decoder.clean(data, LIMIT)
    assert GPS not in clean.data
    assert plain(clean)
    assert decoder.clean(data, LIMIT) == clean


def test_colours_follow_the_profile(decoder: PictureDecoder) -> None:
    """A picture in another colour space looks the same after its conversion to sRGB."""
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = _with_swapped_primaries(lab)
    data = encoded(Image.new("RGB", (32, 32), (200, 30, 30)), "PNG", icc_profile=swapped)
    shown = Image.open(io.BytesIO(decoder.clean(data, LIMIT).data)).getpixel((5, 5))
    assert isinstance(shown, tuple)
    assert shown[1] > shown[0] + 50, "the file's red is green"


def _with_swapped_primaries(profile: bytes) -> bytes:
    """Return a copy of `profile` with red and green exchanged and a name other than sRGB."""
    return (
        profile.replace(b"rXYZ", b"tmpX")
        .replace(b"gXYZ", b"rXYZ")
        .replace(b"tmpX", b"gXYZ")
        .replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be"))
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no picture", Refusal.NOT_A_PICTURE),
        (located()[:5000], Refusal.BROKEN),
        (encoded(Image.new("1", (8000, 7000)), "PNG"), Refusal.TOO_MANY_PIXELS),
    ],
)
def test_refusals_have_a_reason(decoder: PictureDecoder, data: bytes, reason: Refusal) -> None:
    """A refusal has a reason, and the decoder's child process keeps running."""
    decoder.start()
    before = decoder.pid
    refusal = refused(decoder, data)
    assert (refusal.reason, refusal.killed) == (reason, False)
    assert decoder.pid == before


def test_a_jpeg_of_thousands_of_scans_is_refused_before_decoding(decoder: PictureDecoder) -> None:
    """The decoder, the engines and training all refuse a JPEG with thousands of scans before decoding it."""
    bomb = many_scans(3000)
    assert len(bomb) < 1_000_000
    refusal = refused(decoder, bomb)
    assert (refusal.reason, refusal.killed) == (Refusal.TOO_COSTLY, False)
    with pytest.raises(PictureError, match="scans"):
        check_picture(bomb)
    with pytest.raises(PictureError, match="scans"):
        open_picture(bomb)


def test_scans_are_counted() -> None:
    """`scans` counts a JPEG's scans; encoders write only a few.

    Markers inside metadata or after the end of the picture do not count.
    """
    photo = encoded(Image.effect_noise((320, 240), 60), "JPEG")
    assert scans(photo) == 1
    assert 3 < scans(encoded(Image.effect_noise((320, 240), 60), "JPEG", progressive=True)) < 20
    hidden = b"\xff\xda" * 500
    assert scans(photo[:2] + b"\xff\xfe" + struct.pack(">H", len(hidden) + 2) + hidden + photo[2:] + hidden) == 1
    assert scans(many_scans(5000, 64)) == MAX_SCANS + 1
    assert scans(encoded(Image.new("L", (9, 9)), "PNG")) == 0


def test_directories_of_a_tiff_are_not_counted(decoder: PictureDecoder) -> None:
    """The decoder takes the first picture of a TIFF with 175,000 directories without counting the others."""
    decoder.start()
    before = decoder.pid
    assert plain(decoder.clean(many_directories(175_000), LIMIT))
    assert decoder.pid == before


def test_memory_has_a_limit(decoder: PictureDecoder) -> None:
    """A two-kilobyte file that needs a gigabyte of memory is refused, and the next picture is decoded."""
    bomb = large_webp()
    assert len(bomb) < 10_000
    refusal = refused(decoder, bomb)
    assert refusal.reason is Refusal.TOO_COSTLY
    assert plain(decoder.clean(located(), LIMIT))


def test_metadata_is_dropped(decoder: PictureDecoder) -> None:
    """Metadata is dropped, leaving only a few kilobytes of a 19.9 MB file."""
    data = much_metadata()
    assert len(data) > 19_000_000
    assert len(decoder.clean(data, LIMIT).data) < 50_000


def test_processor_time_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that takes too much processor time ends its decoder, and the next picture gets a new decoder."""
    bomb = many_scans(MAX_SCANS - 20)
    monkeypatch.setattr(picture_decoder, "CPU_SECONDS", 0)
    with PictureDecoder() as decoder:
        refusal = refused(decoder, bomb)
        assert (refusal.reason, refusal.killed) == (Refusal.TOO_COSTLY, True)
        assert plain(decoder.clean(located(), LIMIT))


def test_a_decoder_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that hangs is killed, and the next picture gets a new decoder."""
    monkeypatch.setattr(picture_decoder, "WALL_SECONDS", 1.0)
    with PictureDecoder() as decoder:
        decoder.start()
        stopped = decoder.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        assert refused(decoder, located()).killed
        monkeypatch.setattr(picture_decoder, "WALL_SECONDS", 60.0)
        assert plain(decoder.clean(located(), LIMIT))
        assert decoder.pid != stopped


def test_a_decoder_killed_while_idle_is_replaced(decoder: PictureDecoder) -> None:
    """A decoder that is killed while idle is replaced, and the next picture is decoded."""
    decoder.start()
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, decoder.pid, os.WEXITED | os.WNOWAIT)
    assert plain(decoder.clean(located(), LIMIT))


def test_a_decoder_that_cannot_start_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that cannot start is reported as unavailable, and the picture does not count as refused."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with PictureDecoder() as decoder, pytest.raises(DecoderUnavailable, match="ended with status 1"):
        decoder.clean(located(), LIMIT)


async def test_a_pool_works_despite_a_hanging_decoder() -> None:
    """If one decoder of a pool hangs, the others decode all the other pictures.

    Closing the pool does not wait for the decoder that hangs.
    """
    pool = PictureDecoders(2)
    pool.warm()
    await until(lambda: len(pool.pids) == 2)
    first = await pool.clean(located(), LIMIT)
    os.kill(pool.pids[0], signal.SIGSTOP)
    many = [asyncio.create_task(pool.clean(located(), LIMIT)) for _ in range(5)]
    await until(lambda: sum(each.done() for each in many) == 4)
    assert all(each.result() == first for each in many if each.done())
    pids = pool.pids
    await pool.close()
    outcomes = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(each, DecoderUnavailable) for each in outcomes) == 1
    for each in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


SAMPLES = [
    encoded(Image.effect_noise((40, 30), 60).convert(mode), form, **options)
    for form, mode, options in (
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 0}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {}),
        ("WEBP", "RGBA", {}),
        ("HEIF", "RGB", {}),
    )
] + [SIDEWAYS, located(40, 30)]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a picture file of any format, possibly damaged.

    Bytes are changed or repeated, or the rest of the file is replaced by a piece of another file.
    """
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 8))):
        position = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[position] = draw(st.integers(0, 255))
            case 1:
                data[position : position + 4] = draw(st.binary(min_size=4, max_size=4))
            case 2:
                data[position:position] = data[position : position + draw(st.integers(1, 64))]
            case 3:
                other = draw(st.sampled_from(SAMPLES))
                data[position:] = other[min(position, len(other) - 1) :]
    return bytes(data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated())
def test_any_file_is_cleaned_or_refused(decoder: PictureDecoder, data: bytes) -> None:
    """Any file gives either a clean picture or a refusal, even if the child process dies."""
    with suppress(DecodeError):
        assert plain(decoder.clean(data, LIMIT))
