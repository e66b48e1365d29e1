"""Measure how a model swap and a killed engine affect users, on one GPU.

    python -m benchmarks.lmdeploy_swap --work DIR [--people 32] [--tokens 64]

Simulated users chat through thumbtune's `Deployment`, as the bot does. The two models are full-size,
with random weights in the official layout (written by random_checkpoint.py). Each user sends a picture
and asks about it, and switches to a new picture now and then. The script prints JSON: the waits for the
first word before, during and after the swap, for first turns and for follow-ups; the duration of the
swap; the GPU memory before and after it; errors; and the effects of a `kill -9` while answers are being
generated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.engine_crowd import EngineCrowd, waits
from benchmarks.peers.memory_sampler import memory_query
from benchmarks.random_checkpoint import checkpoint
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings


def gpu_megabytes() -> int:
    """Return the GPU memory in use by all processes, in MiB."""
    return int(subprocess.run(memory_query(), check=True, capture_output=True, text=True).stdout.split()[0])


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Swap the model and kill the engine while users chat, and return the measurements."""
    first = checkpoint(options.work, "2b")
    second = options.work / "second"
    if not second.exists():
        second.mkdir()
        for file in first.iterdir():
            (second / file.name).hardlink_to(file)
    sizes = {"blocks": options.blocks} if options.blocks else {}
    settings = InferenceSettings.model_validate(
        {"engine": "lmdeploy", "model": str(first), "lmdeploy": sizes, **options.settings}
    )
    deployment = Deployment(settings, "first", first, logs=options.work)
    found: dict[str, Any] = {}
    began = time.monotonic()
    await deployment.start()
    found["start_seconds"] = round(time.monotonic() - began, 1)
    crowd = EngineCrowd(deployment, range(options.people), options.tokens)
    try:
        await asyncio.sleep(25)
        found["megabytes_before"] = gpu_megabytes()
        swapping = time.monotonic()
        await deployment.swap("second", second)
        swapped = time.monotonic()
        found["swap_seconds"] = round(swapped - swapping, 1)
        await asyncio.sleep(12)
        found["megabytes_after"] = gpu_megabytes()
        for name, start, end in (
            ("before", 0.0, swapping),
            ("during", swapping, swapped),
            ("after", swapped, time.monotonic()),
        ):
            found[name] = {
                "first turns": waits(crowd.seen, (start, end), follow_up=False, late=99),
                "follow-ups": waits(crowd.seen, (start, end), follow_up=True, late=99),
            }
        found["begun_anew_by_swap"] = sum(each.restarted for each in crowd.seen)
        found["kill"] = await killed(deployment, crowd)
    finally:
        await crowd.stop()
        await deployment.stop()
    found["answers"] = len(crowd.seen)
    found["errors"] = crowd.errors
    found["megabytes_at_the_end"] = gpu_megabytes()
    return found


async def killed(deployment: Deployment, crowd: EngineCrowd) -> dict[str, Any]:
    """Kill the engine while it generates answers, and return the effects that users saw.

    The result includes the seconds until the first new answer.
    """
    pid = deployment.status().pids[0]
    before, errors = len(crowd.seen), len(crowd.errors)
    moment = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while True:
        await asyncio.sleep(0.1)
        pids = deployment.status().pids
        if pids and pid not in pids and any(each.asked + each.wait > moment for each in crowd.seen[before:]):
            break
    back = time.monotonic() - moment
    await asyncio.sleep(8)
    after = crowd.seen[before:]
    return {
        "first_answer_after_seconds": round(back, 1),
        "begun_anew": sum(each.restarted for each in after),
        "answers_after": len(after),
        "errors": crowd.errors[errors:],
    }


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoints and the logs")
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, help="KV blocks of each engine (default: by GPU memory)")
    parser.add_argument("--settings", type=json.loads, default={}, help='other keys of [inference]: {"swap": "cold"}')
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(json.dumps(asyncio.run(run(options)), indent=2))


if __name__ == "__main__":
    main()
