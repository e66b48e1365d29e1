"""Measure engines on a Ray cluster of this machine: what Serve costs, two engines against one, a change of model.

    .venv/ray/bin/python -m benchmarks.ray_serving {overhead,throughput,swap} [--model DIR --num-gpus 1]

`overhead`: an engine that the bot starts itself and one behind Ray Serve answer the same follow-ups in turn.

`throughput`: users in several processes send pictures and ask follow-ups without pauses, first with one
engine, then with `--replicas`. A follow-up for which no tile was encoded found its picture cached, so it was
answered by the engine that had answered before.

`swap`: users chat through thumbtune's `Deployment`, as the bot does, while another model is deployed, answers
a picture, is warmed up and takes over, and the old one is drained. The new model has the same weights under
another ID; the client refuses a stream that names two IDs. Both models need engines at the same time, so with
two GPUs each model has one engine.

The script prints one JSON object. After `--limit` seconds it prints what it has measured, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import ray

from benchmarks.engine_crowd import CrowdJob, EngineCrowd, SeenAnswer, waits
from inference.engines.commands import Kind, concurrency
from inference.images.sample_picture import sample_picture
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import InferenceError, Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.serving.engine_launch import free_port
from inference.settings import InferenceSettings

PROMPT: Final = Prompt(
    "Answer briefly.",
    (Turn(Role.USER, "What is this?", (sample_picture(),)),),
    chat="overhead",
    sampling=Sampling(temperature=0, max_new_tokens=8),
)
EVER: Final = (0.0, float("inf"))
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0


def served(options: argparse.Namespace, replicas: int = 1) -> InferenceSettings:
    """Return the settings of a deployment on the cluster."""
    return InferenceSettings.model_validate(
        {
            "engine": "ray",
            "threads": options.threads,
            "lmdeploy": {"blocks": options.blocks},
            "drain_timeout": 30,
            "ray": {
                "address": ray.get_runtime_context().gcs_address,
                "url": f"http://127.0.0.1:{options.port}",
                "python": options.engine_python,
                "num_cpus": options.num_cpus,
                "num_gpus": options.num_gpus,
                "replicas": {"min": replicas, "max": replicas},
            },
        }
    )


async def first_word(deployment: Deployment) -> float:
    """Ask the question once more and return the seconds until its first word."""
    async for delta in deployment.answer(PROMPT):
        if delta.answer is not None:
            return delta.answer.first_token_seconds
    raise AssertionError("an engine's stream ends with the answer or raises")


async def overhead(options: argparse.Namespace, folder: Path, found: dict[str, Any]) -> None:
    """Ask both engines in turn and compare the medians."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # Ray assigns the first GPU first.
    local = {"engine": "lmdeploy", "gpus": [gpus - 1]} if options.num_gpus else {"engine": "cpu"}
    sizes = {"threads": options.threads, "lmdeploy": {"blocks": options.blocks}}
    own = InferenceSettings.model_validate({**local, **sizes, "python": options.engine_python})
    deployments = {
        "own engine": Deployment(own, "base", options.model, logs=folder / "own"),
        "through Ray Serve": Deployment(served(options), "base", options.model, logs=folder / "ray"),
    }
    times: dict[str, list[float]] = {name: [] for name in deployments}
    try:
        for name, deployment in deployments.items():
            began = time.monotonic()
            await deployment.start()
            found[f"{name}, start"] = round(time.monotonic() - began, 1)
            await first_word(deployment)
        for _ in range(options.turns):
            for name, deployment in deployments.items():
                times[name].append(await first_word(deployment) * 1000)
    finally:
        if all(times.values()):
            medians = [statistics.median(column) for column in times.values()]
            found["follow-ups"] = len(times["own engine"])
            found["first word, median ms"] = {name: round(each, 1) for name, each in zip(times, medians, strict=True)}
            found["more, ms"] = round(medians[1] - medians[0], 1)
        await asyncio.gather(*(stop(deployment) for deployment in deployments.values()))


async def throughput(options: argparse.Namespace, folder: Path, found: dict[str, Any]) -> None:
    """Measure the answers per second of one engine, then of several."""
    for replicas in (1, options.replicas):
        # Each has its own ID, because the application of the one before may still be draining.
        model = f"engines-{replicas}"
        settings = served(options, replicas)
        deployment = Deployment(settings, model, options.model, logs=folder)
        try:
            began = time.monotonic()
            await deployment.start()
            started = round(time.monotonic() - began, 1)
            found[model] = {"start": started, **await crowded(options, deployment, settings)}
        finally:
            await stop(deployment)
    one, several = (found[f"engines-{replicas}"]["answers per second"] for replicas in (1, options.replicas))
    found["ratio"] = round(several / one, 2) if one else None


async def crowded(options: argparse.Namespace, deployment: Deployment, settings: InferenceSettings) -> dict[str, Any]:
    """Let users in several processes ask the deployment's engines, and return the measurements."""
    (application,) = deployment.workers_of(deployment.status().model)
    processes = min(options.processes, options.people)
    jobs = [
        CrowdJob(
            url=application.client.base_url,
            model=application.model_id,
            key=application.key,
            people=range(part, options.people, processes),
            slots=math.ceil(concurrency(Kind.RAY, settings) / processes),
            tokens=options.tokens,
            seconds=options.ramp + options.seconds,
        )
        for part in range(processes)
    ]
    context = multiprocessing.get_context("spawn")  # Ray's threads make a fork unsafe
    ready = context.Barrier(processes + 1)
    pool = ProcessPoolExecutor(processes, context, ready.wait, (READY_SECONDS,))
    loop = asyncio.get_running_loop()
    try:
        crowds = [loop.run_in_executor(pool, job.run) for job in jobs]
        await asyncio.to_thread(ready.wait, READY_SECONDS)
        begin = time.monotonic() + options.ramp
        end = begin + options.seconds
        await asyncio.sleep(options.ramp)
        busy = proxy_seconds()
        await asyncio.sleep(options.seconds)
        busy = proxy_seconds() - busy
        parts = await asyncio.gather(*crowds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    seen = [answer for answers, _ in parts for answer in answers]
    inside = [answer for answer in seen if begin <= answer.ended < end]
    return {
        "answers per second": round(len(inside) / options.seconds, 2),
        "tokens per second": round(sum(answer.tokens for answer in inside) / options.seconds, 1),
        "cores that Serve's proxy used": round(busy / options.seconds, 2),
        **report(inside, EVER),
        "errors": [error for _, errors in parts for error in errors],
    }


def proxy_seconds() -> float:
    """Return the processor time that Serve's proxy, through which all answers pass, has used so far."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended
            if "ProxyActor" in " ".join(process.cmdline()):
                seconds += sum(process.cpu_times()[:2])
    return seconds


async def swap(options: argparse.Namespace, folder: Path, found: dict[str, Any]) -> None:
    """Change the model while users chat, and compare the waits before, during and after the change."""
    deployment = Deployment(served(options), "first", options.model, logs=folder)
    marks: list[float] = []
    try:
        await deployment.start()
        crowd = EngineCrowd(
            deployment, range(options.people), options.tokens, (0.5 * options.pause, 1.5 * options.pause)
        )
        try:
            await asyncio.sleep(options.ramp)
            marks.append(time.monotonic())
            await asyncio.sleep(options.seconds)
            marks.append(time.monotonic())
            await deployment.swap("second", options.model)
            marks.append(time.monotonic())
            await asyncio.sleep(options.seconds)
            marks.append(time.monotonic())
            await crowd.stop()
        finally:
            crowd.cancel()
            for name, span in zip(("before", "during", "after"), pairwise([*marks, time.monotonic()]), strict=False):
                found[name] = {"seconds": round(span[1] - span[0], 1), **report(crowd.seen, span)}
            found["answers"] = Counter(answer.model for answer in crowd.seen)
            found["restarted"] = sum(answer.restarted for answer in crowd.seen)
            found["from two models"] = sum(answer.mixed for answer in crowd.seen)
            found["by the old model, asked after the change"] = sum(
                answer.model == "first" and answer.asked > marks[2] for answer in crowd.seen if len(marks) > 2
            )
            found["errors"] = crowd.errors
    finally:
        await stop(deployment)


def report(seen: Sequence[SeenAnswer], span: tuple[float, float]) -> dict[str, Any]:
    """Return the wait times for the first word within `span`, and the share of follow-ups whose picture was cached."""
    tiles = [answer.tiles for answer in seen if answer.follow_up and span[0] <= answer.asked < span[1]]
    return {
        "first turns": waits(seen, span, follow_up=False),
        "follow-ups": waits(seen, span, follow_up=True),
        "follow-ups with their picture cached": round(tiles.count(0) / len(tiles), 4) if tiles else None,
    }


async def stop(deployment: Deployment) -> None:
    """Stop the deployment, in limited time; Ray ends what is left."""
    with suppress(TimeoutError):
        await asyncio.wait_for(deployment.stop(), STOP_SECONDS)


CASES: Final = {"overhead": overhead, "throughput": throughput, "swap": swap}


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a case within its time limit, and return the measurements."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(options.limit):
            await CASES[options.case](options, folder, found)
    except TimeoutError:
        found["unfinished after"] = options.limit
    except InferenceError as error:  # earlier measurements are printed anyway
        found["error"] = str(error)
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--engine-python", default="", help="the engines' Python interpreter (default: Ray's own)")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs of an engine; 0 for CPU engines")
    parser.add_argument("--num-cpus", type=float, default=1, help="cores that Ray reserves for an engine")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU engine")
    parser.add_argument("--blocks", type=int, help="KV blocks of an engine, so that two fit one GPU (default: all)")
    parser.add_argument("--turns", type=int, default=100, help="overhead: follow-ups to each engine")
    parser.add_argument("--replicas", type=int, default=2, help="throughput: engines to compare with one")
    parser.add_argument(
        "--processes", type=int, default=min(os.cpu_count() or 1, 8), help="throughput: processes of users"
    )
    parser.add_argument("--people", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64, help="length of an answer to the users")
    parser.add_argument("--pause", type=float, default=8, help="swap: mean seconds that a user reads an answer")
    parser.add_argument("--ramp", type=float, default=15, help="seconds of chat before the measurement")
    parser.add_argument("--seconds", type=float, default=20, help="seconds of chat measured; swap: before and after")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which the case ends unfinished")
    options = parser.parse_args()
    options.port = free_port()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # otherwise Ray writes a token to the home folder
    ray.init("local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options, Path(folder)))
    print(json.dumps({options.case: found}))


if __name__ == "__main__":
    main()
