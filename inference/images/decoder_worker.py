"""Child side of the decoder for untrusted pictures: decoding within limits on time and memory.

    python -m inference.images.decoder_worker NICENESS CPU_SECONDS

The function `clean` turns a picture upright, makes it opaque, converts it to sRGB, scales it down to
`LONGEST_SIDE` and re-encodes it as a baseline JPEG, or as a PNG if the file was lossless and the picture
is small. Only pixels are kept: no EXIF, GPS data, colour profile or comment. The process reads files
from its standard input until the input ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import pillow_heif
from PIL import Image, ImageCms, ImageOps

from inference.images.decoder_protocol import LONGEST_SIDE, READY, REQUEST, RESPONSE, CleanPicture, DecodeError, Refusal
from inference.images.opening import MAX_SCANS, scans
from inference.images.perceptual_hash import perceptual_hash

pillow_heif.register_heif_opener()

_MEMORY: Final = 768 * 2**20
"""The limit on data segments in bytes. A photo of 50 megapixels takes 450 MB, 650 MB if transparent, more as WebP."""

_ADDRESS_SPACE: Final = _MEMORY + 512 * 2**20
"""The limit on the address space, for systems whose RLIMIT_DATA does not cover mappings; it includes the libraries."""

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF")
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_LOSSLESS: Final = ("PNG", "GIF", "BMP", "TIFF")
_LOSSLESS_PIXELS: Final = 2_000_000
_JPEG_QUALITY: Final = 92
_SCALABLE: Final = ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr")

_SRGB: Final = ImageCms.createProfile("sRGB")


def clean(data: bytes, max_megapixels: float) -> CleanPicture:
    """Re-encode a picture, or the first frame of an animation.

    Raises:
        DecodeError: The picture cannot be decoded, or exceeds a limit.
    """
    if scans(data) > MAX_SCANS:
        raise DecodeError(Refusal.TOO_COSTLY)
    image = _opened(data, max_megapixels)
    try:
        lossless = image.format in _LOSSLESS and image.width * image.height <= _LOSSLESS_PIXELS
        if max(image.size) > LONGEST_SIDE:
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        image.load()
        profile = image.info.get("icc_profile")
        if image.mode in _SCALABLE:
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        # pillow-heif has already rotated a HEIC picture and set its EXIF orientation to 1.
        shown = _opaque(_srgb(ImageOps.exif_transpose(image), profile))
        shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        shown.info.clear()  # Pillow would write a comment or a profile from it
        written = BytesIO()
        if lossless:
            shown.save(written, "PNG", compress_level=4)
        else:
            shown.save(written, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = "image/png" if lossless else "image/jpeg"
        return CleanPicture(written.getvalue(), kind, *shown.size, perceptual_hash(shown))
    except MemoryError as error:
        raise DecodeError(Refusal.TOO_COSTLY) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise DecodeError(Refusal.BROKEN) from error


def _opened(data: bytes, max_megapixels: float) -> Image.Image:
    """Open a picture and read its header without decoding the pixels."""
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)
    except MemoryError as error:
        raise DecodeError(Refusal.TOO_COSTLY) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(Refusal.TOO_MANY_PIXELS) from error
    except Exception as error:  # Pillow raises many types of exceptions on a bad header
        raise DecodeError(Refusal.BROKEN if data.startswith(_SIGNATURES) else Refusal.NOT_A_PICTURE) from error
    if image.width * image.height > max_megapixels * 1e6:
        raise DecodeError(Refusal.TOO_MANY_PIXELS)
    return image


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert the colours from `profile` to sRGB, or keep them if the profile is missing or unusable."""
    if not profile or image.mode.startswith("I") or image.mode == "F":
        return image
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return image
        if image.mode == "P":
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        out = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, own, _SRGB, outputMode=out) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture in RGB on a white background, as image viewers show it.

    Simply dropping the alpha channel would reveal hidden pixels.
    """
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGB", coloured.size, "white")
    white.paste(coloured, mask=coloured.getchannel("A"))
    return white


def _limit() -> None:
    """Limit this process's memory and file writes, as far as the operating system supports the limits."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the kernel kills this process first
    for what, most in (
        (resource.RLIMIT_DATA, _MEMORY),
        (resource.RLIMIT_AS, _ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _allow_cpu(seconds: int) -> None:
    """Allow `seconds` more seconds of processor time, after which the kernel kills the process (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _serve(requests: BinaryIO, answers: BinaryIO, seconds: int) -> None:
    """Answer requests until the stream ends, allowing `seconds` of processor time for each."""
    answers.write(READY)
    answers.flush()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size, max_megapixels = REQUEST.unpack(head)
        _allow_cpu(seconds)
        encoded = b""
        try:
            picture = clean(requests.read(size), max_megapixels)
        except DecodeError as refusal:
            answer: dict[str, object] = {"refused": refusal.reason}
        else:
            encoded = picture.data
            answer = {name: getattr(picture, name) for name in ("media_type", "width", "height", "phash")}
        description = json.dumps(answer).encode()
        answers.write(RESPONSE.pack(len(description), len(encoded)) + description)
        answers.write(encoded)
        answers.flush()


def main() -> None:
    """Serve the parent process until it closes the pipe or exits."""
    warnings.simplefilter("ignore")
    logging.disable()
    answers = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)  # libraries print warnings about hostile files
    os.nice(int(sys.argv[1]))
    _limit()
    _serve(sys.stdin.buffer, answers, int(sys.argv[2]))


if __name__ == "__main__":
    main()
