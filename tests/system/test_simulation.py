"""Every call to Telegram and every ledger commit fails in turn, in every way, and the bot's promises hold.

docs/promises.md lists the promises: in private chats nothing is lost or duplicated; in a group an answer
may be repeated once for each send whose outcome is unknown. A failure names its plan, for example
`{9: <Fault.CUT_AFTER>}`, and `Scene(template, folder, plan, seed).run()` replays the failure exactly.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from storage.ledger import Ledger
from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.chatting import Notebook, RunningBot, ScriptedEngine, png, settings
from tests.support.simulation import Act, Fault, Plan, Simulation

ADA, GRACE = 1001, 1002
ALLOWED = ["message", "edited_message", "callback_query", "message_reaction"]
QUIET_SECONDS = 40
"""After so long without work everything that the bot does late has been done."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Turn off logging, because thousands of injected faults would be logged as warnings."""
    former = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**former)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a data folder with an empty ledger, for scenes to copy.

    Creating the ledger's tables takes longer than a whole scene.
    """
    folder = tmp_path_factory.mktemp("template") / "data"
    asyncio.run(Ledger.open(folder).close())
    return folder


class Scene:
    """A scripted scene in which two users ask, vote, edit and send commands, in private chats and in a group."""

    def __init__(self, template: Path, folder: Path, plan: Plan, seed: int = 0) -> None:
        self.folder = shutil.copytree(template, folder)
        emulator = Emulator(first_id=100, clock=lambda: self.simulation.loop.now)
        self.token, self.people, self.world = emulator.token, emulator.people, emulator.world
        self.world.updates.allow(ALLOWED)
        self.plan = plan
        self.simulation = Simulation(self.world, plan, seed)
        emulator.add_person(ADA, "Ada")
        emulator.add_person(GRACE, "Grace")
        self.group = emulator.add_group("Plants", [ADA, GRACE]).id
        photo = [Attachment(png())]
        prepared = self.simulation.loop.run_until_complete
        prepared(self.people.sends(ADA, photo, "What is this?"))
        prepared(self.people.sends(GRACE, photo, "@thumbtune_bot And this?", chat=self.group))
        self.engine = ScriptedEngine(otherwise=lambda prompt, _: [0.1, "About ", 0.1, prompt.turns[-1].text])
        self._asked: Any = None

    def run(self) -> Simulation:
        """Play the scene to its end, then have users tap any remaining ⏹ buttons."""
        self.simulation.run(self._acts(), self._process)
        self.simulation.plan = {}
        self.simulation.run([Act("stops", self._tap_left_overs)], self._process)
        self.simulation.loop.close()
        return self.simulation

    def said(self, chat: int, text: str) -> list[Any]:
        """Return the bot's messages in `chat` that begin with `text`."""
        messages = self.world.chats[chat].messages.values()
        return [each for each in messages if each["from"]["is_bot"] and each["text"].startswith(text)]

    def _acts(self) -> list[Act]:
        def asks() -> None:
            self._asked = self.people.writes(ADA, "Why?")

        def edits() -> None:
            self.people.edits(ADA, self._asked["message_id"], "Who?")

        return [
            Act("asks again", asks, lambda: self._rated(ADA, "What is this?")),
            Act("likes", lambda: self._press("👍", ADA, "Why?"), lambda: self._rated(ADA, "Why?")),
            Act("edits", edits),
            Act("wants help", lambda: self.people.writes(ADA, "/help"), lambda: self._rated(ADA, "Who?")),
            Act("dislikes", lambda: self._press("👎", self.group, "And"), lambda: self._rated(self.group, "And this?")),
            Act("reads", lambda: self.people.writes(GRACE, "/privacy")),
        ]

    def _rated(self, chat: int, question: str) -> bool:
        return any("👍" in str(each.get("reply_markup")) for each in self.said(chat, f"About {question}"))

    def _press(self, label: str, chat: int, question: str) -> None:
        message = self.said(chat, f"About {question}")[-1]
        buttons = [button for row in message["reply_markup"]["inline_keyboard"] for button in row]
        (data,) = (each["callback_data"] for each in buttons if label in each["text"])
        self.people.presses(ADA, message["message_id"], data, chat=chat)

    def _tap_left_overs(self) -> None:
        for chat, person in ((ADA, ADA), (GRACE, GRACE), (self.group, GRACE)):
            for each in self._left_over(chat):
                ((button,),) = each["reply_markup"]["inline_keyboard"]
                self.people.presses(person, each["message_id"], button["callback_data"], chat=chat)

    def _left_over(self, chat: int) -> list[Any]:
        return [each for each in self.said(chat, "") if "⏹" in str(each.get("reply_markup"))]

    async def _process(self, simulation: Simulation, settled: asyncio.Event) -> None:
        running = RunningBot(settings("http://telegram", self.token), self.folder, self.engine, Notebook())
        running.start()
        quiet_seconds = 0
        try:
            while quiet_seconds < QUIET_SECONDS:
                await asyncio.sleep(1)
                idle = not len(self.world.updates) and await running.idle()
                quiet_seconds = quiet_seconds + 1 if idle else 0
            settled.set()
            await asyncio.Event().wait()
        finally:
            if not simulation.dead:
                await running.stop(0)

    def repeats(self) -> int:
        """Return how many times the answer in the group was repeated."""
        return len(self.said(self.group, "About And this?")) - 1

    def broken_promises(self) -> list[str]:
        """Return descriptions of what was lost, duplicated or left over, or an empty list."""
        private = (
            (ADA, "About What is this?"),
            (ADA, "About Who?"),
            (ADA, "Send me a picture"),
            (GRACE, "What I store"),
        )
        wrong = [f"{len(found)} × {text!r}" for chat, text in private if len(found := self.said(chat, text)) != 1]
        if not 0 <= self.repeats() <= len(self.plan):
            wrong.append(f"{self.repeats()} repeats")
        chats = (ADA, GRACE, self.group)
        wrong += [f"left over: {each['text']!r}" for chat in chats for each in self._left_over(chat)]
        with sqlite3.connect(self.folder / "ledger.db") as ledger:
            votes = ledger.execute("SELECT rater, value FROM feedback ORDER BY id").fetchall()
            unfinished = ledger.execute("SELECT id, state FROM inbox WHERE state != 'done'").fetchall()
        ledger.close()
        if votes != [(ADA, 1), (ADA, -1)]:
            wrong.append(f"votes: {votes}")
        if unfinished:
            wrong.append(f"unfinished: {unfinished}")
        return wrong


def faults_of(step: str) -> tuple[Fault, ...]:
    """Return the faults that can occur at a step."""
    if step == "commit":
        return Fault.CRASH_BEFORE, Fault.CRASH_AFTER
    if step == "getUpdates":
        return Fault.CUT_AFTER, Fault.REPEAT, Fault.CRASH_AFTER
    return Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.DELAY, Fault.CRASH_BEFORE, Fault.CRASH_AFTER


def test_a_scene_without_faults_is_the_same_each_time(template: Path, tmp_path: Path) -> None:
    """A scene with the same plan and seed takes the same steps each time, so that failures can be replayed."""
    scenes = [Scene(template, tmp_path / name, {}) for name in ("first", "second")]
    first, second = (scene.run() for scene in scenes)
    assert first.steps == second.steps
    assert [scene.broken_promises() for scene in scenes] == [[], []]


def test_every_step_goes_wrong_in_every_way(template: Path, tmp_path: Path) -> None:
    """The bot keeps its delivery promises when a single fault of any kind occurs at any step of a scene."""
    broken, repeated = {}, set()
    for number, step in enumerate(Scene(template, tmp_path / "clean", {}).run().steps):
        for fault in faults_of(step):
            scene = Scene(template, tmp_path / f"{number}-{fault.name}", {number: fault})
            scene.run()
            if wrong := scene.broken_promises():
                broken[number, step, fault] = wrong
            if scene.repeats():
                repeated.add((step, fault))
    assert not broken
    send = "sendMessage About And this?"
    open_outcomes = {(send, Fault.CUT_AFTER), (send, Fault.DELAY), (send, Fault.CRASH_AFTER)}
    assert repeated == {*open_outcomes, ("commit", Fault.CRASH_BEFORE)}, "the send, and the note that it was done"


@pytest.mark.parametrize(
    "seed", [*range(20), 429, *(pytest.param(n, marks=pytest.mark.soak) for n in range(20, 1000) if n != 429)]
)
def test_many_steps_go_wrong(template: Path, tmp_path: Path, seed: int) -> None:
    """The bot keeps its delivery promises when several random faults occur in one scene.

    The faults include crashes during the recovery from an earlier fault.
    """
    draw = random.Random(seed)
    plan = {draw.randrange(120): draw.choice(list(Fault)) for _ in range(draw.randint(2, 12))}
    scene = Scene(template, tmp_path / "data", plan, seed)
    scene.run()
    assert scene.broken_promises() == [], plan
