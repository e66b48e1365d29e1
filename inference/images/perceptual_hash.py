"""pHash, a perceptual hash of pictures: similar pictures have hashes that differ in few bits.

The method is described at https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html, and the hashes
are those of ImageHash 4.3.2. This module needs only Pillow: with SciPy, which ImageHash imports, each decoder would
take five times as long to start and use more than twice the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from operator import mul
from typing import Final

from PIL import Image

_SIDE: Final = 32
"""The side length in pixels to which a picture is scaled."""

_KEPT: Final = 8
"""The number of frequencies kept in each direction, starting with the lowest."""

_WAVES: Final = [
    [cos(pi * frequency * (2 * pixel + 1) / (2 * _SIDE)) for pixel in range(_SIDE)] for frequency in range(_KEPT)
]
"""The discrete cosine transform (DCT-II), with one row per frequency."""


def perceptual_hash(image: Image.Image) -> str:
    """Return the picture's 64-bit hash in hexadecimal."""
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).tobytes()
    rows = [_transformed(grey[start : start + _SIDE]) for start in range(0, len(grey), _SIDE)]
    columns = [_transformed(column) for column in zip(*rows, strict=True)]
    # Rounded, because most frequencies of a flat or symmetrical picture are 0, and rounding errors would decide the
    # bits.
    found = [round(frequency, 6) for row in zip(*columns, strict=True) for frequency in row]
    ordered = sorted(found)
    median = (ordered[len(found) // 2 - 1] + ordered[len(found) // 2]) / 2
    bits = "".join("01"[frequency > median] for frequency in found)
    return f"{int(bits, 2):016x}"


def _transformed(values: Sequence[float]) -> list[float]:
    return [sum(map(mul, wave, values)) for wave in _WAVES]
