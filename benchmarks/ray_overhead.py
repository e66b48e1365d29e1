"""Measure how much Ray Serve adds to the time until the first word of a follow-up.

    .venv/ray/bin/python -m benchmarks.ray_overhead

An engine that the bot starts itself and one on a Ray cluster on this machine answer the same follow-ups in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

import ray

from inference.images.sample_picture import sample_picture
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.serving.engine_launch import free_port
from inference.settings import InferenceSettings

PROMPT = Prompt(
    "Answer briefly.",
    (Turn(Role.USER, "What is this?", (sample_picture(),)),),
    chat="overhead",
    sampling=Sampling(temperature=0, max_new_tokens=8),
)


async def first_word(deployment: Deployment) -> float:
    """Ask the question again and return the seconds until its first word."""
    async for delta in deployment.answer(PROMPT):
        if delta.answer is not None:
            return delta.answer.first_token_seconds
    raise AssertionError("an engine's stream ends with the answer or raises")


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """Ask both engines in turn and print the medians."""
    given = {"threads": 1, "python": ""}
    cluster = {"num_gpus": options.num_gpus, "url": f"http://127.0.0.1:{free_port()}"}
    own = InferenceSettings.model_validate({**given, "engine": "lmdeploy" if options.num_gpus else "cpu"})
    served = InferenceSettings.model_validate({**given, "engine": "ray", "ray": cluster})
    deployments = [
        Deployment(settings, "base", options.model, logs=folder / settings.engine) for settings in (own, served)
    ]
    try:
        for deployment in deployments:
            await deployment.start()
            await first_word(deployment)
        times = [[await first_word(deployment) for deployment in deployments] for _ in range(options.turns)]
    finally:
        await asyncio.gather(*(deployment.stop() for deployment in deployments))
    medians = [statistics.median(column) * 1000 for column in zip(*times, strict=True)]
    own_time, served_time = medians
    sys.stdout.write(
        f"{options.turns} follow-ups, medians: own engine {own_time:.1f} ms, through Ray Serve {served_time:.1f} ms, "
        f"{served_time - own_time:.1f} ms more\n"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--num-gpus", type=float, default=0)
    parser.add_argument("--turns", type=int, default=100)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # otherwise Ray writes a token to the home folder
    ray.init(include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
