"""Alerts from a complete bot: the admin gets one alert of each kind, in their language, with the cause."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from bot.admin.alerts import CRASHED, DISK_LOW
from bot.admin.progress import SILENT
from bot.admin.run_manager import NOT_TAKEN
from bot.handlers.unhandled_updates import GAVE_UP, SORRY
from bot.i18n import Translator
from storage.state_machines import RunState
from tests.support.person import Message, Person, button
from tests.support.speech import foreign
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words

FAILED: Final = "Run {run} failed; nothing has changed. Reason: {reason}"


PLACE: Final = re.compile(r"\{\w+\}")


def shape(template: str) -> re.Pattern[str]:
    """Return a pattern that matches `template` with any values in its placeholders."""
    return re.compile(".+".join(map(re.escape, PLACE.split(template))), re.DOTALL)


async def asking(whole: WholeBot, person: Person, seed: int = 0) -> Message:
    """Send a picture as `person` and return the bot's answer."""
    asked = await person.sends(photo=picture(seed))
    return await whole.says(person.id, lambda message: bool(button(message, "👍")), after=asked["message_id"])


async def crash(whole: WholeBot) -> None:
    """Kill the engine and wait until a replacement has started."""
    engines = whole.engines()
    os.kill(engines[-1], signal.SIGKILL)
    async with asyncio.timeout(30):
        while len(whole.engines()) == len(engines):
            await asyncio.sleep(0.01)


def poison(whole: WholeBot, person: Person) -> int:
    """Add an update that makes every handler fail (a message without a date) and return its ID."""
    chat = {"id": person.id, "type": "private", "first_name": person.name}
    sender = {"id": person.id, "is_bot": False, "first_name": person.name, "language_code": person.language}
    number = whole.emulator.world.updates.add("message", {"message_id": 1, "chat": chat, "from": sender, "text": "!"})
    assert number is not None
    return number


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_each_trouble_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    """Each kind of problem sends the admin exactly one message.

    The problems are a full disk, engine crashes, dead letters, a failed run and a model that does not start.
    The sender of a dead letter is notified as well.
    """
    say = Translator.load().to(language)
    async with whole_bot(tmp_path, monkeypatch) as whole:
        root, ada = await whole.person(ADMIN, "Root", language), await whole.person(1001, "Ada", language)
        async with whole.running():  # the bot notifies people in the language it knows of them
            for person in (root, ada):
                asked = await person.sends("/start")
                await whole.says(person.id, after=asked["message_id"])
        async with whole.running(storage={"min_free_gigabytes": 1e9}):
            for seed in range(4):
                await ada.toast(await ada.taps("👍", await asking(whole, ada, seed)))
            poisoned = []
            for _ in range(2):
                await asking(whole, ada)  # an engine that has not come up yet cannot crash
                await crash(whole)
                poisoned.append(poison(whole, ada))
            last = 0
            for _ in range(2):
                last = (await whole.says(ada.id, lambda message: words(message) == say(SORRY), after=last))[
                    "message_id"
                ]
            for run, cue in ((1, "bad"), (2, "silent")):
                whole.cue(cue)
                await root.sends("/retrain")
                await whole.ended(run)
            done = say("Run {run} is done. Model {model}: {state}.", run=2, model="run-2", state=say("candidate"))
            await whole.says(root.id, lambda message: words(message).startswith(done))
        told = [words(message) for message in await root.bot_messages()]
        for sentence, fault in {
            DISK_LOW: str(whole.data),
            CRASHED: "SIGKILL",
            GAVE_UP: f" {poisoned[0]} ",
            FAILED: "row 3 is bad",
            NOT_TAKEN: "these weights are no good",
        }.items():
            (found,) = [text for text in told if shape(say(sentence)).search(text)]
            assert fault in found
            assert foreign(PLACE.sub("", say(sentence)), language) == []
        assert sum(text.startswith("⚠") for text in told) == 4, "nothing else is reported as a problem"


async def test_a_run_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that hangs raises an alert for the admin and can be cancelled like any other run.

    The alert, /status and the operator page name the run's log.
    """
    say = Translator.load().to("zh")
    async with whole_bot(tmp_path, monkeypatch) as whole:
        root = await whole.person(ADMIN, "Root", "zh")
        async with whole.running(training={"silence": 1.0}) as application:
            for seed in range(4):
                await root.toast(await root.taps("👍", await asking(whole, root, seed)))
            whole.cue("hang")
            await root.sends("/retrain")
            told = shape(say(SILENT))
            alert = await whole.says(root.id, lambda message: told.search(words(message)) is not None)
            log = whole.data / "runs" / "1" / "finetune.log"
            assert str(log) in words(alert)
            asked = await root.sends("/status")
            status = await whole.says(root.id, after=asked["message_id"])
            assert told.search(words(status)) and str(log) in words(status)
            async with aiohttp.ClientSession() as session, session.get(application.address) as page:
                assert f": {log}" in await page.text()
            await root.sends("/cancel")
            assert (await whole.ended(1)).state is RunState.CANCELLED
