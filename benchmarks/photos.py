"""Generated photos of several sizes for benchmarks."""

from __future__ import annotations

import io
import random
from typing import Final

from PIL import Image

SIZES: Final = ((1280, 960), (960, 1280), (640, 480), (1920, 1080), (448, 448), (3000, 2000), (720, 1280), (1024, 1024))


def photo(size: tuple[int, int], rng: random.Random) -> bytes:
    """Return a JPEG, typically a few hundred kilobytes, with smooth areas and grain like a camera photo."""
    coarse = Image.frombytes("RGB", (24, 18), rng.randbytes(24 * 18 * 3)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.effect_noise(size, 24).convert("RGB")
    written = io.BytesIO()
    Image.blend(coarse, grain, 0.2).save(written, "JPEG", quality=85)
    return written.getvalue()
