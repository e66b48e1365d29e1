"""A sample picture, used to verify that an engine answers questions."""

from __future__ import annotations

from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw

from inference.messages import Picture


@cache
def sample_picture() -> Picture:
    """Return a small square picture, which every model splits into exactly one tile."""
    image = Image.new("RGB", (112, 112), (230, 230, 220))
    ImageDraw.Draw(image).ellipse((22, 22, 90, 90), fill=(200, 40, 40))
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return Picture.of(encoded.getvalue())
