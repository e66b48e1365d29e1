"""When an engine is ready: it has really answered a picture. An open port, a /health and an empty question prove less.

Knows the picture that is asked about, and how long and how often to ask. What runs the engine, and what is said to
people where it does not get ready, is launch.py's.
"""

from __future__ import annotations

import asyncio
from functools import cache
from io import BytesIO
from time import monotonic
from typing import Final

from PIL import Image, ImageDraw

from inference.engines.http_client import HttpEngine, Sizes
from inference.messages import EngineCrashed, EngineUnavailable, InferenceError, Picture

_PAUSE: Final = 0.1
_PAUSE_MAX: Final = 1.0


class NotReady(Exception):
    """The engine has not answered a picture. The text says what it did instead, without naming the engine."""


async def answers_a_picture(engine: HttpEngine, *, patience: float, longest: float) -> Sizes:
    """Ask until a picture is answered; return the engine's sizes as `HttpEngine.sizes` does.

    An engine that is not listening yet, or still loading, "crashes". `patience` bounds all of it and `longest` one
    question, in seconds. Raises NotReady.
    """
    deadline = monotonic() + patience
    pause = _PAUSE
    while True:
        try:
            await engine.probe(sample_picture(), max(min(deadline - monotonic(), longest), 0.001))
            return await engine.sizes()
        except (EngineCrashed, EngineUnavailable) as error:
            if monotonic() + pause >= deadline:
                raise NotReady(f"was not ready within {patience:g} s: {error}") from error
        except InferenceError as error:
            raise NotReady(f"refused a simple picture: {error}") from error
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, _PAUSE_MAX)


@cache
def sample_picture() -> Picture:
    """The picture that proves readiness: small and square, so that it is one tile for every model."""
    image = Image.new("RGB", (112, 112), (230, 230, 220))
    draw = ImageDraw.Draw(image)
    draw.ellipse((22, 22, 90, 90), fill=(200, 40, 40))
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return Picture.of(encoded.getvalue())
