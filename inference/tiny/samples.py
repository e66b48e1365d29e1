"""Sample pictures for people who try the bot: a dozen, drawn on demand by the examining renderer.

Pillow and the standard library only.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from random import Random
from typing import Final

from inference.tiny.shapes import Scene, draw
from inference.tiny.words import phrase

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


@lru_cache(maxsize=1)
def sample_pictures() -> dict[str, bytes]:
    """JPEG files by name (`three-red-stars`); always the same ones."""
    return {phrase(scene, "en").replace(" ", "-"): _jpeg(scene) for scene in _SCENES}


def _jpeg(scene: Scene) -> bytes:
    buffer = BytesIO()
    draw(scene, Random(phrase(scene, "en")), "other", _SIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
