"""Measure the whole product on one GPU: users chat with `thumbtune run` while an admin retrains.

    python -m benchmarks.product --work DIR [--size 2b] [--people 8] [--corrections 16]

The bot runs in a process of its own, with lmdeploy on full-size random weights in the official layout.
The emulator in this process replaces Telegram. Each simulated user sends photos of several sizes, asks
two follow-ups about each, and votes. A model with random weights seldom ends an answer, so votes alone
would give little training data; therefore the users, all of them admins, also correct answers. Then one sends
`/retrain` and, when the run has ended, `/promote`. The bot may ask for confirmation, or refuse if the model
gives more malformed answers than the live one. Random weights that have learned much do; with `--knobs '{"epochs": 2,
"learning_rate": 1e-9}'` they hardly change, so chance decides, and the admin repeats both commands up to `--runs`
times. All users keep chatting until `--after` seconds after that. A run that has not ended after `--limit` seconds
is abandoned, and the measurements up to then are printed.

The script prints JSON: for each run the seconds that it spent in each state, its verdict and effort, and the seconds
until the new model's first answer, and, in each state, the wait times for the first word and for the whole answer and
the peak GPU memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lmdeploy_swap import gpu_megabytes
from benchmarks.product_crowd import ADMIN, ANSWER_SECONDS, ProductCrowd, table
from benchmarks.random_checkpoint import SIZES as CHECKPOINTS
from benchmarks.random_checkpoint import checkpoint
from storage.learning_records import Run
from storage.ledger import Ledger
from telegram_emulator import Emulator
from tests.support.chatting import until
from training.run_folder import REPORT

ENDED = ("done", "failed", "cancelled")
START_SECONDS = 30.0
PROMOTION_SECONDS = 90.0
REFUSED = "That didn't work"
STOP_SECONDS = 15.0


def environment(
    options: argparse.Namespace, url: str, token: str, *, admins: Sequence[int], model: Path, data: Path
) -> dict[str, str]:
    """Return the environment variables of the bot process, including its settings."""
    settings = {
        "TELEGRAM__TOKEN": token,
        "TELEGRAM__API_BASE": url,
        "TELEGRAM__ADMINS": json.dumps(admins),
        "CHAT__MAX_NEW_TOKENS": "64",
        "STORAGE__DIR": str(data),
        "INFERENCE__ENGINE": options.engine,
        "INFERENCE__MODEL": str(model),
        "TRAINING__MIN_RATED": "8",
        "TRAINING__MIN_RATERS": "1",
        "TRAINING__RATER_AGE": "0",
        "TRAINING__RECIPE": options.recipe,
        "TRAINING__KNOBS": json.dumps(options.knobs),
        "TRAINING__KEEP_WARM": json.dumps(options.keep_warm),
        "WEB__PORT": "0",
    }
    return {**os.environ, **{f"THUMBTUNE_{name}": value for name, value in settings.items()}}


async def follow_run(ledger: Ledger, crowd: ProductCrowd, seconds: dict[str, float], limit: float, last: int) -> Run:
    """Wait for at most `limit` seconds until the newest run after run `last` ends, and return it.

    The seconds spent in each of its states are added to `seconds`.
    """
    began = before = time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        runs = [run for run in await ledger.runs.latest() if run.id > last]
        if not runs and now - began > START_SECONDS:
            raise RuntimeError(f"no run has started: {crowd.latest(ADMIN)}")
        if runs:
            if crowd.state != runs[0].state:
                print(f"{now - began:.0f} s after /retrain: {runs[0].state}", file=sys.stderr)
            crowd.state = runs[0].state
            seconds[crowd.state] = seconds.get(crowd.state, 0.0) + now - before
            if crowd.state in ENDED or now - began > limit:
                return runs[0]
        before = now


async def live_model(ledger: Ledger) -> str:
    """Return the ID of the live model, or an empty string if there is none."""
    live = await ledger.models.live()
    return live.id if live else ""


async def promote(emulator: Emulator, crowd: ProductCrowd, ledger: Ledger, model: str) -> dict[str, Any]:
    """Send /promote, confirm it if asked, and return the seconds until the model's first answer, or the refusal."""
    crowd.state = "promoting"
    asked = crowd.last(ADMIN)
    emulator.people.writes(ADMIN, f"/promote {model}")
    began, confirmed = time.monotonic(), False
    while not (await ledger.votes.shown(model, crowd.ids))[0]:
        confirmed = confirmed or crowd.overrule(asked)
        refusals = [text for text in crowd.latest(ADMIN, asked) if text.startswith(REFUSED)]
        if refusals or time.monotonic() - began > PROMOTION_SECONDS:
            return {"promotion refused": refusals[-1:]}
        await asyncio.sleep(0.05)
    return {"first answer after promotion": round(time.monotonic() - began, 1)}


async def retrain(
    emulator: Emulator, crowd: ProductCrowd, ledger: Ledger, data: Path, *, limit: float, last: int
) -> dict[str, Any]:
    """Send /retrain and, if a model is made and not yet live, /promote; return the measurements."""
    seconds: dict[str, float] = {}
    emulator.people.writes(ADMIN, "/retrain")
    began = time.monotonic()
    ended = await follow_run(ledger, crowd, seconds, limit, last)
    figures = {
        "run": ended.id,
        "state": ended.state,
        "reason": ended.reason,
        "model": ended.model,
        "seconds": round(time.monotonic() - began, 1),
        "seconds by state": {name: round(value, 1) for name, value in seconds.items()},
    }
    if ended.state == "done":
        report = json.loads((data / "runs" / str(ended.id) / REPORT).read_text(encoding="utf-8"))
        figures |= {"decision": report["decision"], "effort": report["effort"]}
    if ended.model and ended.model != await live_model(ledger):
        figures |= await promote(emulator, crowd, ledger, ended.model)
    return figures


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Retrain while users chat, and return the measurements."""
    model = options.model or checkpoint(options.work, options.size)
    emulator = Emulator()
    url = await emulator.start()
    crowd = ProductCrowd(emulator, options.people)
    data = options.work / "data"
    line = (sys.executable, "-m", "bot.cli.main", "run")
    log = (options.work / "bot.log").open("w", encoding="utf-8")
    began = time.monotonic()
    bot = await asyncio.create_subprocess_exec(
        *line,
        env=environment(options, url, emulator.token, admins=crowd.ids, model=model, data=data),
        stdout=log,
        stderr=log,
    )
    found: dict[str, Any] = {}
    megabytes: dict[str, int] = {}

    async def watch_memory() -> None:
        while True:
            used = await asyncio.to_thread(gpu_megabytes)
            megabytes[crowd.state] = max(megabytes.get(crowd.state, 0), used)
            await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(watch_memory())] if options.engine == "lmdeploy" else []
    try:
        chats = [asyncio.create_task(crowd.chat(each, options.corrections)) for each in crowd.ids]
        tasks += chats
        await until(lambda: bool(crowd.waits), ANSWER_SECONDS)
        found["first answer after"] = round(time.monotonic() - began, 1)

        def enough() -> bool:
            for task in chats:
                if task.done():
                    task.result()
            return bool(crowd.corrected >= options.corrections and len(crowd.waits) >= options.answers)

        await until(enough, ANSWER_SECONDS)
        crowd.state = "alone"
        await asyncio.sleep(options.alone)
        found["runs"] = []
        async with Ledger.open(data) as ledger:
            for _ in range(options.runs):
                last = max((run.id for run in await ledger.runs.latest()), default=0)
                one = await retrain(emulator, crowd, ledger, data, limit=options.limit, last=last)
                found["runs"].append(one)
                if not one.get("promotion refused"):
                    break
            crowd.state = "after"
            await asyncio.sleep(options.after)
            found["counts"] = await ledger.counts.totals()
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        bot.send_signal(signal.SIGTERM)
        stopping = time.monotonic()
        await asyncio.wait_for(bot.wait(), STOP_SECONDS)
        await emulator.stop()
        log.close()
    found |= {"stopped after": round(time.monotonic() - stopping, 1), "exit code": bot.returncode}
    errors = [repr(each) for each in results if isinstance(each, Exception)]
    return found | {"waits": table(crowd.waits), "most megabytes": megabytes, "errors": errors}


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint, the data and the log")
    parser.add_argument("--size", choices=CHECKPOINTS, default="2b", help="the size of the model with random weights")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of random weights")
    parser.add_argument("--engine", default="lmdeploy")
    parser.add_argument("--recipe", default="food")
    parser.add_argument("--knobs", type=json.loads, default={"epochs": 2}, help="hyperparameters to change, as JSON")
    parser.add_argument("--keep-warm", action="store_true", help="set training.keep_warm")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--corrections", type=int, default=16, help="answers that the users correct")
    parser.add_argument("--answers", type=int, default=100, help="answers before the admin retrains")
    parser.add_argument("--runs", type=int, default=1, help="the maximum number of runs until a model is promoted")
    parser.add_argument("--alone", type=float, default=15.0, help="seconds of chat before the run")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a run is abandoned")
    parser.add_argument("--after", type=float, default=15.0, help="seconds of chat after the run")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(json.dumps(asyncio.run(run(options)), indent=2))


if __name__ == "__main__":
    main()
