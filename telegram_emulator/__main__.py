"""Run the emulator by itself: `python -m telegram_emulator`.

The emulator serves its chat page and prints the environment variables with which a bot uses it instead of Telegram.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Final

from PIL import Image, ImageDraw

from telegram_emulator.emulator import Emulator

TOKEN: Final = "1000000001:local-emulator"
ADMIN: Final = 1001
PEOPLE: Final = {ADMIN: "Mia", 1002: "Tom", 1003: "Ada"}
_SIZE: Final = (640, 480)
_BOX: Final = (200, 120, 440, 360)
_TRIANGLE: Final = ((320, 120), (440, 360), (200, 360))


async def serve(port: int) -> None:
    """Serve the chat page and the Bot API on a port of this machine until cancelled.

    Raises:
        OSError: The port is in use.
    """
    emulator = Emulator(token=TOKEN, samples=sample_pictures())
    for person, name in PEOPLE.items():
        emulator.add_person(person, name, admin=person == ADMIN)
    emulator.add_group("Friends", list(PEOPLE))
    address = await emulator.start(port=port)
    try:
        sys.stdout.write(welcome(address))
        sys.stdout.flush()
        await asyncio.Event().wait()
    finally:
        await emulator.stop()


def welcome(address: str) -> str:
    """Return the text that says where to chat and how to run a bot with the emulator."""
    return f"""Chat page: {address}
Token: {TOKEN}

In another terminal, run the bot with it:

  export THUMBTUNE_TELEGRAM__API_BASE={address} THUMBTUNE_TELEGRAM__TOKEN={TOKEN}
  export THUMBTUNE_TELEGRAM__ADMINS='[{ADMIN}]' THUMBTUNE_STORAGE__DIR=rehearsal
  thumbtune doctor
  thumbtune run

`thumbtune init --config rehearsal.toml` asks for the token; {PEOPLE[ADMIN]}'s user ID is {ADMIN}.
Ctrl-C stops the emulator and deletes its chats.
"""


def sample_pictures() -> dict[str, bytes]:
    """Return JPEG pictures of coloured shapes, keyed by name."""
    return {
        "red-circle": _jpeg(lambda draw: draw.ellipse(_BOX, "red")),
        "blue-square": _jpeg(lambda draw: draw.rectangle(_BOX, "blue")),
        "green-triangle": _jpeg(lambda draw: draw.polygon(_TRIANGLE, "green")),
    }


def _jpeg(paint: Callable[[ImageDraw.ImageDraw], None]) -> bytes:
    picture, data = Image.new("RGB", _SIZE, "white"), BytesIO()
    paint(ImageDraw.Draw(picture))
    picture.save(data, "JPEG", quality=90)
    return data.getvalue()


def main() -> None:
    """Run the emulator until Ctrl-C is pressed."""
    parser = argparse.ArgumentParser(prog="python -m telegram_emulator", description="A local Bot API server.")
    parser.add_argument("--port", type=int, default=8090, help="port of the server; 0 selects a free port")
    port = parser.parse_args().port
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(port))
    except OSError as error:
        raise SystemExit(f"Port {port} cannot be used ({error}): choose another one with --port.") from error


if __name__ == "__main__":
    main()
