"""Run the emulator by itself: `python -m telegram_emulator`.

The emulator serves its chat page and prints the commands that set up and run a bot with it instead of Telegram.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from telegram_emulator.emulator import Emulator

TOKEN: Final = "1000000001:local-emulator"
ADMIN: Final = 1001
SAMPLES: Final = Path(__file__).parent / "samples"
PEOPLE: Final = {ADMIN: "Mia", 1002: "Tom", 1003: "Ada"}
NOTE: Final = "A bot with the model tiny only knows coloured shapes; your own photos need InternVL2."


async def serve(port: int) -> None:
    """Serve the chat page and the Bot API on a port of this machine until cancelled.

    Raises:
        OSError: The port is in use.
    """
    emulator = Emulator(token=TOKEN, samples=sample_pictures(), note=NOTE)
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


def sample_pictures() -> dict[str, bytes]:
    """Return JPEG pictures of coloured shapes, keyed by names such as `three-red-stars`."""
    return {each.stem: each.read_bytes() for each in sorted(SAMPLES.iterdir())}


def welcome(address: str) -> str:
    """Return the text that says where to chat, and how to set up and run a bot with the emulator."""
    thumbtune = shlex.quote(shutil.which("thumbtune", path=str(Path(sys.executable).parent)) or "thumbtune")
    return f"""Chat page: {address}
Token: {TOKEN}
User ID of {PEOPLE[ADMIN]}, the admin: {ADMIN}

In another terminal, set up a bot and run it:

  export THUMBTUNE_TELEGRAM__API_BASE={address}
  export THUMBTUNE_STORAGE__DIR=rehearsal THUMBTUNE_TRAINING__RATER_AGE=0
  {thumbtune} init --config rehearsal.toml
  {thumbtune} doctor --config rehearsal.toml
  {thumbtune} run --config rehearsal.toml

`init` asks for the token and the user ID, and writes the exported settings to rehearsal.toml as well.
{NOTE}
Ctrl-C stops the emulator and deletes its chats.
"""


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
