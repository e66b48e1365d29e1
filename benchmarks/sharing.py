"""What people notice of a training on the card that answers them.

    python -m benchmarks.sharing --work DIR [--people 8] [--seconds 30]

Through our `Deployment` with lmdeploy, as the bot uses it, and the product's worker, both on one card with full-size
random weights in the official layout. Everybody sends a picture and goes on asking about it, with a new picture now and
then: first with the card to themselves, then beside a training of 64 pictures (13 tiles, batches of 4, nothing but the
numbers of batches changed). Prints JSON: the waits for the first word in both, the ratios of their 95th percentiles,
seconds of a training step, and memory of the card.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lmdeploy_serving import checkpoint, set_tiles
from benchmarks.lmdeploy_swap import Crowd, Seen, gpu_megabytes
from benchmarks.training import SYSTEM, lay_out
from inference.deployment import Deployment
from inference.settings import InferenceSettings
from training.job import Job, Progress
from training.launcher import ChildTrainer
from training.settings import TrainingSettings


def waits(seen: Sequence[Seen], start: float, end: float) -> dict[str, dict[str, float]]:
    """Median and 95th percentile in seconds, of first turns and of follow-ups asked between two moments."""
    found = {}
    for name, follow_up in (("first turns", False), ("follow-ups", True)):
        values = sorted(each.wait for each in seen if start <= each.asked < end and each.follow_up is follow_up)
        found[name] = {
            "number": len(values),
            "median": round(values[len(values) // 2], 4),
            "p95": round(values[min(int(len(values) * 0.95), len(values) - 1)], 4),
        }
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Chat alone, then beside a training."""
    base = checkpoint(options.work, "2b")
    set_tiles(base, 12)
    data, images = lay_out(base, options.work / "data-64", 64)
    settings = InferenceSettings.model_validate({"engine": "lmdeploy", "model": str(base), **options.settings})
    deployment = Deployment(settings, "first", base, logs=options.work)
    await deployment.start()
    crowd = Crowd(deployment, options.people, options.tokens)
    found: dict[str, Any] = {}
    steps: list[float] = []
    going = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.stage == "training":
            steps.append(time.monotonic())
            if len(steps) == 3:
                going.set()

    work = options.work / "sharing"
    work.mkdir(exist_ok=True)
    job = replace(Job("1", str(base), str(data), str(images), str(work), SYSTEM), epochs=1000, **options.knobs)
    if options.courtesy:
        job = replace(job, courtesy=str(deployment.first_words.resolve()))
    try:
        await asyncio.sleep(12)
        began = time.monotonic()
        await asyncio.sleep(options.seconds)
        alone = waits(crowd.seen, began, time.monotonic())
        found["megabytes_alone"] = gpu_megabytes()
        training = asyncio.create_task(ChildTrainer(TrainingSettings()).train(job, note))
        waiting = asyncio.create_task(going.wait())
        await asyncio.wait((training, waiting), return_when=asyncio.FIRST_COMPLETED)
        began, begun = time.monotonic(), len(steps)
        await asyncio.sleep(options.seconds)
        found["megabytes_shared"] = gpu_megabytes()
        done, ended = len(steps) - begun, time.monotonic()
        if training.done():
            raise RuntimeError(training.result().reason)
        training.cancel()
        await asyncio.wait((training,))
        beside = waits(crowd.seen, began, ended)
    finally:
        await crowd.stop()
        await deployment.stop()
    found |= {"alone": alone, "beside": beside, "step_seconds": round((ended - began) / max(done, 1), 3)}
    found["p95_ratios"] = {name: round(beside[name]["p95"] / alone[name]["p95"], 2) for name in alone}
    found["errors"] = crowd.errors
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint and the logs")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--courtesy", action=argparse.BooleanOptionalAction, default=True, help="as the bot has it")
    parser.add_argument("--settings", type=json.loads, default={}, help="others of [inference], as JSON")
    parser.add_argument("--knobs", type=json.loads, default={}, help="others of the job, as JSON")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(asyncio.run(run(options)), indent=2) + "\n")


if __name__ == "__main__":
    main()
