"""Measure the wait for the first word of an answer: `python -m benchmarks.first_word`.

The whole product takes part: the emulator, the bot process, the ledger, and an engine process with the
tiny model. The wait lasts from the message's arrival at the Bot API server to the first edit that shows
text from the model instead of the placeholder. It is measured for new pictures and for one follow-up
about each. The script prints medians and 95th percentiles.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.community import Community, questions

PICTURES = 30
WARM_UP = 2


async def measure() -> dict[str, list[float]]:
    """Return the wait times for the first word, in seconds, by kind of turn."""
    waits: dict[str, list[float]] = {"first answer": [], "follow-up": []}
    with tempfile.TemporaryDirectory() as folder:
        async with Community(Path(folder)) as community:
            await community.bot.start()
            person = await community.person()
            for number, question in enumerate(questions("first-word", PICTURES + WARM_UP)):
                turns: dict[str, dict[str, Any]] = {
                    "first answer": {"photo": question.picture, "caption": question.text},
                    "follow-up": {"text": "how many are there?"},
                }
                for kind, what in turns.items():
                    began = time.perf_counter()
                    await person.sends(**what)
                    await person.first_words()
                    waited = time.perf_counter() - began
                    await person.answer(rated=True)
                    if number >= WARM_UP:
                        waits[kind].append(waited)
    return waits


def main() -> None:
    """Run the benchmark and print the medians and 95th percentiles of the waits."""
    for kind, waits in asyncio.run(measure()).items():
        median, late = np.percentile(waits, [50, 95])
        print(f"{kind:14} median {median:.3f} s, 95 % within {late:.3f} s ({len(waits)} turns)")


if __name__ == "__main__":
    main()
