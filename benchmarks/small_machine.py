"""Time a whole run of the bot on a CPU, from `/retrain` to the new model going live.

    python -m benchmarks.small_machine [--keep-warm]

The bot, its engines and its workers are real processes, with internvl2-tiny and one thread for each engine and each
worker. Three people ask about 30 pictures, twice each, and vote by a taste; then an admin retrains. The script prints
the seconds from `/retrain` until the new model answers, and the seconds of each worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.support.community import TRAINING, Community, playful

WARM_SECONDS = 15


async def measure(folder: Path, *, keep_warm: bool) -> dict[str, object]:
    """Return the outcome of one run and its times in seconds."""
    training = {**TRAINING, "python": sys.executable, "keep_warm": keep_warm}
    async with Community(folder, python=sys.executable, training=training) as community:
        await community.bot.start()
        await community.vote("small machine", playful)
        if keep_warm:
            await asyncio.sleep(WARM_SECONDS)  # until the libraries have been imported
        begun = time.monotonic()
        run = await community.retrain()
        seconds = time.monotonic() - begun
        live = await community.live_model()
    workers = {
        file.name.removesuffix(".outcome.json"): round(json.loads(file.read_bytes())["seconds"], 1)
        for file in sorted(Path(run.directory).glob("*.outcome.json"))
    }
    return {"live": live, "seconds": round(seconds, 1), "workers": workers}


def main() -> None:
    """Measure a run and print the result as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep-warm", action="store_true", help="import the libraries before the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), keep_warm=options.keep_warm))
    Console().print_json(data=found)


if __name__ == "__main__":
    main()
