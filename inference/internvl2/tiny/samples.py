"""Sample pictures for users who try out the bot: a dozen pictures and a sticker, drawn on demand."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from random import Random
from typing import Final

from inference.internvl2.tiny.drawing import draw, sticker
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import phrase

_SCENES: Final = (
    Scene("red", "star", 3),
    Scene("blue", "circle", 2),
    Scene("yellow", "heart", 1),
    Scene("green", "triangle", 5),
    Scene("purple", "square", 4),
    Scene("orange", "cross", 2),
    Scene("black", "star", 1),
    Scene("red", "heart", 5),
    Scene("blue", "triangle", 3),
    Scene("yellow", "circle", 4),
    Scene("green", "square", 1),
    Scene("purple", "cross", 3),
)
_SIZE: Final = (640, 480)
_STICKER: Final = Scene("orange", "star", 1)
_STICKER_SIDE: Final = 512  # pixels (core.telegram.org/stickers)


@lru_cache(maxsize=1)
def sample_pictures() -> dict[str, bytes]:
    """Return the sample pictures, which never change, as JPEG data keyed by names such as `three-red-stars`."""
    return {_name(scene): _jpeg(scene) for scene in _SCENES}


@lru_cache(maxsize=1)
def sample_sticker() -> dict[str, bytes]:
    """Return the sample sticker, which never changes, as WebP data keyed by `sticker-of-one-orange-star`."""
    buffer = BytesIO()
    sticker(_STICKER, Random(_name(_STICKER)), _STICKER_SIDE).save(buffer, "WEBP", quality=80)
    return {f"sticker-of-{_name(_STICKER)}": buffer.getvalue()}


def _name(scene: Scene) -> str:
    return phrase(scene, "en").replace(" ", "-")


def _jpeg(scene: Scene) -> bytes:
    buffer = BytesIO()
    draw(scene, Random(phrase(scene, "en")), _SIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
