"""Measure the whole product on one GPU: users chat with `thumbtune run` while an admin retrains.

    python -m benchmarks.product --work DIR [--size 2b] [--people 8] [--corrections 16]

The bot runs in a process of its own, with lmdeploy on full-size random weights in the official layout.
The emulator in this process replaces Telegram. Each simulated user sends photos of several sizes, asks
two follow-ups about each, and votes. A model with random weights seldom ends an answer, so votes alone
would give little training data; therefore the admin also corrects answers. Then the admin sends
`/retrain` and, when the run has ended, `/promote`, which the bot may ask to confirm, or refuse if the model
gives malformed answers. All users keep chatting until `--after` seconds after that.

The script prints JSON: the seconds that the run spent in each state, its verdict and effort, the seconds
until the new model was live, and, in each state, the waits for the first word and for the whole answer and
the peak GPU memory.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lmdeploy_swap import gpu_megabytes
from benchmarks.photos import SIZES, photo
from benchmarks.random_checkpoint import SIZES as CHECKPOINTS
from benchmarks.random_checkpoint import checkpoint, set_tiles
from bot.telegram.callback_data import Overrule
from storage.learning_records import Run
from storage.ledger import Ledger
from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.chatting import until
from training.run_folder import REPORT

ADMIN = 7
FOLLOW_UPS = ("What else?", "And the colours?", "Tell me a joke about it.")
PLACEHOLDERS = ("Looking at your picture…", "Thinking…")
ENDED = ("done", "failed", "cancelled")
ANSWER_SECONDS = 180.0
START_SECONDS = 30.0
PROMOTION_SECONDS = 90.0
REFUSED = "That didn't work"
OVERRULE = f"{Overrule.__prefix__}:"
STOP_SECONDS = 15.0

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """The wait for one answer.

    Attributes:
        state: The state of the run when the question was asked.
        follow_up: Whether the question was a follow-up.
        first: The seconds to the first word.
        whole: The seconds to the whole answer.
    """

    state: str
    follow_up: bool
    first: float
    whole: float


class ProductCrowd:
    """The simulated users of one emulator."""

    def __init__(self, emulator: Emulator, people: int) -> None:
        self._emulator = emulator
        self._rng = random.Random(1)
        self._photos = itertools.cycle([photo(size, self._rng) for size in SIZES])
        self.ids = [ADMIN, *(1000 + number for number in range(1, people))]
        for each in self.ids:
            emulator.add_person(each, f"P{each}", admin=each == ADMIN)
        self.state = "before"
        self.waits: list[Wait] = []
        self.corrected = 0

    async def chat(self, person: int, corrections: int = 0) -> None:
        """Send photos as the user `person` and ask about them, until cancelled.

        The first `corrections` answers to follow-ups are corrected.
        """
        people = self._emulator.people
        while True:
            await people.sends(person, [Attachment(next(self._photos))], "What is funny here?")
            await self._answered(person, follow_up=False)
            for question in self._rng.sample(FOLLOW_UPS, 2):
                people.writes(person, question)
                answer = await self._answered(person, follow_up=True)
                if self.corrected < corrections:
                    await self._correct(person, answer)
                elif self._rng.random() < 0.6:
                    self._press(person, answer, "👍")

    def last(self, person: int) -> int:
        """Return the ID of the newest message in the user's chat, or 0 if there is none."""
        return max(self._emulator.world.chats[person].messages, default=0)

    def latest(self, person: int) -> list[str]:
        """Return the texts of the last three messages without buttons that the bot sent to the user."""
        return [each["text"] for each in self._messages(person, 0) if "reply_markup" not in each][-3:]

    async def _answered(self, person: int, *, follow_up: bool) -> Message:
        """Wait for the answer to the user's newest message, record the wait, and return the answer."""
        after, state, began, first = self.last(person), self.state, time.monotonic(), 0.0
        while True:
            for each in self._messages(person, after):
                now = time.monotonic() - began
                if each["text"] not in PLACEHOLDERS:
                    first = first or now
                if "👍" in str(each.get("reply_markup")):
                    self.waits.append(Wait(state, follow_up, first, now))
                    return each
            if time.monotonic() - began > ANSWER_SECONDS:
                raise RuntimeError(
                    f"no answer to P{person}: {[each['text'] for each in self._messages(person, after)]}"
                )
            await asyncio.sleep(0.002)

    async def _correct(self, person: int, answer: Message) -> None:
        """Dislike an answer, reply with a better one, and confirm the correction."""
        self.corrected += 1
        self._press(person, answer, "👎")
        number = answer["message_id"]
        shown = self._emulator.world.chats[person].messages
        await until(lambda: "✍" in str(shown[number]), ANSWER_SECONDS)
        after = self.last(person)
        better = f"A very funny picture, number {self.corrected}, with a cat that laughs at the moon."
        self._emulator.people.writes(person, better, reply_to=number)
        await until(lambda: "👍" in str(self._messages(person, after)), ANSWER_SECONDS)
        self._press(person, self._messages(person, after)[-1], "👍")

    def overrule(self) -> bool:
        """Press the admin's button that promotes a model against its verdict, and return whether there was one."""
        for each in self._messages(ADMIN, 0):
            for row in each.get("reply_markup", {}).get("inline_keyboard", []):
                for button in row:
                    if button.get("callback_data", "").startswith(OVERRULE):
                        self._emulator.people.presses(ADMIN, each["message_id"], button["callback_data"])
                        return True
        return False

    def _press(self, person: int, message: Message, label: str) -> None:
        buttons = [button for row in message["reply_markup"]["inline_keyboard"] for button in row]
        data = next(each["callback_data"] for each in buttons if label in each["text"])
        self._emulator.people.presses(person, message["message_id"], data)

    def _messages(self, person: int, after: int) -> list[Message]:
        messages = self._emulator.world.chats[person].messages
        return [
            each for number, each in messages.items() if number > after and each["from"]["is_bot"] and "text" in each
        ]


def table(waits: Sequence[Wait]) -> dict[str, Any]:
    """Return the median, 95th percentile and maximum of the waits in seconds, by state and kind of question."""
    found: dict[str, Any] = {}
    for state in dict.fromkeys(each.state for each in waits):
        for follow_up in (False, True):
            some = [each for each in waits if each.state == state and each.follow_up is follow_up]
            if some:
                name = "follow-ups" if follow_up else "new photos"
                found.setdefault(state, {})[name] = {
                    "number": len(some),
                    "first word": spread([each.first for each in some]),
                    "whole": spread([each.whole for each in some]),
                }
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Return the median, 95th percentile and maximum of `values`."""
    ordered = sorted(values)
    at = (len(ordered) // 2, min(int(0.95 * len(ordered)), len(ordered) - 1), -1)
    return [round(ordered[index], 3) for index in at]


def environment(options: argparse.Namespace, url: str, token: str, model: Path, data: Path) -> dict[str, str]:
    """Return the environment variables of the bot process, including its settings."""
    settings = {
        "TELEGRAM__TOKEN": token,
        "TELEGRAM__API_BASE": url,
        "TELEGRAM__ADMINS": json.dumps([ADMIN]),
        "CHAT__MAX_NEW_TOKENS": "64",
        "STORAGE__DIR": str(data),
        "INFERENCE__ENGINE": options.engine,
        "INFERENCE__MODEL": str(model),
        "TRAINING__MIN_RATED": "8",
        "TRAINING__MIN_RATERS": "1",
        "TRAINING__RATER_AGE": "0",
        "TRAINING__RECIPE": options.recipe,
        "TRAINING__KNOBS": json.dumps(options.knobs),
        "WEB__PORT": "0",
    }
    return {**os.environ, **{f"THUMBTUNE_{name}": value for name, value in settings.items()}}


async def follow_run(ledger: Ledger, crowd: ProductCrowd, seconds: dict[str, float]) -> Run:
    """Wait until the newest run ends, and add the seconds spent in each of its states to `seconds`."""
    began = before = time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        runs = await ledger.runs.latest()
        if not runs and now - began > START_SECONDS:
            raise RuntimeError(f"no run has begun: {crowd.latest(ADMIN)}")
        if runs:
            if crowd.state != runs[0].state:
                sys.stderr.write(f"{now - began:.0f} s after /retrain: {runs[0].state}\n")
            crowd.state = runs[0].state
            seconds[crowd.state] = seconds.get(crowd.state, 0.0) + now - before
            if crowd.state in ENDED:
                return runs[0]
        before = now


async def live_model(ledger: Ledger) -> str:
    """Return the ID of the live model, or an empty string if there is none."""
    live = await ledger.models.live()
    return live.id if live else ""


async def promote(emulator: Emulator, crowd: ProductCrowd, ledger: Ledger, model: str) -> dict[str, Any]:
    """Send /promote, confirm it if asked, and return the seconds until the model is live, or the bot's refusal."""
    crowd.state = "promoting"
    emulator.people.writes(ADMIN, f"/promote {model}")
    began, confirmed = time.monotonic(), False
    while await live_model(ledger) != model:
        confirmed = confirmed or crowd.overrule()
        refusals = [text for text in crowd.latest(ADMIN) if text.startswith(REFUSED)]
        if refusals or time.monotonic() - began > PROMOTION_SECONDS:
            return {"promotion refused": refusals[-1:]}
        await asyncio.sleep(0.05)
    return {"promoted after": round(time.monotonic() - began, 1)}


async def retrain(emulator: Emulator, crowd: ProductCrowd, data: Path, after: float) -> dict[str, Any]:
    """Send /retrain, wait until `after` seconds after the run's end, and return the run's measurements."""
    async with Ledger.open(data) as ledger:
        seconds: dict[str, float] = {}
        emulator.people.writes(ADMIN, "/retrain")
        began = time.monotonic()
        ended = await follow_run(ledger, crowd, seconds)
        figures = {
            "state": ended.state,
            "reason": ended.reason,
            "model": ended.model,
            "seconds": round(time.monotonic() - began, 1),
            "seconds by state": {name: round(value, 1) for name, value in seconds.items()},
        }
        if ended.state == "done":
            report = json.loads((data / "runs" / str(ended.id) / REPORT).read_text(encoding="utf-8"))
            figures["effort"] = report["effort"]
        if ended.model and ended.model != await live_model(ledger):
            figures |= await promote(emulator, crowd, ledger, ended.model)
        crowd.state = "after"
        await asyncio.sleep(after)
        return {"run": figures, "counts": await ledger.counts.totals()}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Retrain while users chat, and return the measurements."""
    if options.model:
        model = options.model
    else:
        model = checkpoint(options.work, options.size)
        set_tiles(model, 12)
    emulator = Emulator()
    url = await emulator.start()
    crowd = ProductCrowd(emulator, options.people)
    data = options.work / "data"
    line = (sys.executable, "-m", "bot.cli.main", "run")
    log = (options.work / "bot.log").open("w", encoding="utf-8")
    began = time.monotonic()
    bot = await asyncio.create_subprocess_exec(
        *line, env=environment(options, url, emulator.token, model, data), stdout=log, stderr=log
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
        chats = [
            asyncio.create_task(crowd.chat(each, options.corrections if each == ADMIN else 0)) for each in crowd.ids
        ]
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
        found |= await retrain(emulator, crowd, data, options.after)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.product", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint, the data and the log")
    parser.add_argument("--size", choices=CHECKPOINTS, default="2b", help="the size of the model with random weights")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of random weights")
    parser.add_argument("--engine", default="lmdeploy")
    parser.add_argument("--recipe", default="food")
    parser.add_argument("--knobs", type=json.loads, default={"epochs": 2}, help="hyperparameters to change, as JSON")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--corrections", type=int, default=16, help="answers that the admin corrects")
    parser.add_argument("--answers", type=int, default=100, help="answers before the admin retrains")
    parser.add_argument("--alone", type=float, default=15.0, help="seconds of chat before the run")
    parser.add_argument("--after", type=float, default=15.0, help="seconds of chat after the run")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(asyncio.run(run(options)), indent=2) + "\n")


if __name__ == "__main__":
    main()
