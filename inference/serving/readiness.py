"""The readiness check asks about a picture; an open port, /health or an answer to an empty prompt would prove less."""

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
    """The engine has not answered about the picture. The message completes a sentence that begins with its name."""


async def answers_a_picture(engine: HttpEngine, *, patience: float, longest: float) -> Sizes:
    """Ask about a picture until an answer comes, with backoff; return `HttpEngine.sizes`.

    If the engine is not listening yet or still loading, EngineCrashed is caught and the question repeated. `patience`
    limits all attempts together and `longest` each one, in seconds. Raises NotReady.
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
    """Return the picture of the readiness check: small and square, hence one tile for every model."""
    image = Image.new("RGB", (112, 112), (230, 230, 220))
    draw = ImageDraw.Draw(image)
    draw.ellipse((22, 22, 90, 90), fill=(200, 40, 40))
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return Picture.of(encoded.getvalue())
