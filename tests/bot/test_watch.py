"""Alerts: the admins are notified once when a problem begins, not repeatedly."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from bot.admin.alerts import STEADY_LOOKS, AlertWatch
from inference.serving.deployment_status import Counters
from inference.serving.supervisor import State
from tests.support.chatting import ADMIN, Notebook, Stage
from training.launcher import LastProgress

Usage = namedtuple("Usage", "total used free")


async def test_a_crash_is_told_once(stage: Stage) -> None:
    """Repeated crashes of an engine cause one alert, and a failure to start causes another."""
    status = Notebook().engine
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        watch = AlertWatch(bot.notices, lambda: status, lambda: None, bot.ledger, 0)
        await watch.look()
        await bot.notices.settled()
        assert await root.bot_messages() == []
        for crashes in (1, 1, 2, 5):
            status = replace(status, counters=Counters(crashes=crashes), last_error="Out of memory.\nIn detail …")
            await watch.look()
            await bot.notices.settled()
        (told,) = await root.bot_messages()
        assert told["text"] == "⚠ Problem: The engine crashed and is restarting. Out of memory."
        status = replace(status, state=State.FAILING)
        for _ in range(2):
            await watch.look()
            await bot.notices.settled()
        assert [each["text"] for each in await root.bot_messages()][1:] == [
            "⚠ Problem: The engine won't start, so nobody gets answers. I'll keep trying. Out of memory."
        ]


async def test_that_the_engine_is_back_is_told_once(stage: Stage) -> None:
    """After a reported crash, recovery is reported once, when every engine answers again."""
    engine = Notebook().engine
    ready = replace(engine, nodes=tuple(replace(each, state=State.READY) for each in engine.nodes))
    starting = replace(ready, nodes=(replace(ready.nodes[0], state=State.RESTARTING), ready.nodes[1]))
    crashed = replace(ready, counters=Counters(crashes=1), last_error="Out of memory.")
    restarting = replace(crashed, nodes=starting.nodes)
    looks = [ready, restarting, restarting, *2 * STEADY_LOOKS * [crashed]]
    looks += 2 * STEADY_LOOKS * [replace(ready, counters=Counters(crashes=2))]
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        watch = AlertWatch(bot.notices, lambda: looks.pop(0), lambda: None, bot.ledger, 0)
        while looks:
            await watch.look()
        await bot.notices.settled()
        assert [each["text"] for each in await root.bot_messages()] == [
            "⚠ Problem: The engine crashed and is restarting. Out of memory.",
            "The engine is back and answering again.",
        ]


async def test_a_disk_that_fills_up_is_told_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free disk space below the configured minimum causes only one alert, however many checks follow.

    The alert is in the admin's language.
    """
    free = [3.0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10e9, 0, free[0] * 1e9))
    async with stage.person(ADMIN, "Root", "zh") as root, stage.bot() as bot:
        await root.sends("/language")
        await stage.handled(bot)
        before = len(await root.bot_messages())
        watch = AlertWatch(bot.notices, lambda: Notebook().engine, lambda: None, bot.ledger, 2.0)
        for free[0] in (3.0, 1.5, 1.4, 1.3):
            await watch.look()
            await bot.notices.settled()
        (told,) = (await root.bot_messages())[before:]
        assert "磁盘只剩 1.5 GB" in told["text"]


async def test_a_silent_run_is_told_once_and_that_it_goes_on(stage: Stage) -> None:
    """A run without progress causes one alert, and one message when progress resumes.

    If the run ends instead, no message is sent.
    """
    word: list[LastProgress | None] = [None]

    def said(run: int, seconds: float) -> LastProgress:
        return LastProgress(str(run), seconds, seconds >= 600, Path(f"/data/runs/{run}/finetune.log"))

    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        watch = AlertWatch(bot.notices, lambda: Notebook().engine, lambda: word[0], bot.ledger, 0)
        for word[0] in (None, said(3, 1), said(3, 300), said(3, 600), said(3, 605)):
            await watch.look()
            await bot.notices.settled()
        assert [each["text"] for each in await root.bot_messages()] == [
            "⚠ Problem: Run 3 has made no progress for 10:00. See /data/runs/3/finetune.log; /cancel stops it."
        ]
        for word[0] in (None, said(3, 1), said(3, 2)):
            await watch.look()
            await bot.notices.settled()
        assert [each["text"] for each in await root.bot_messages()][1:] == ["Run 3 is making progress again."]
        for word[0] in (said(4, 700), None, said(5, 0)):
            await watch.look()
            await bot.notices.settled()
        assert len(await root.bot_messages()) == 3


async def test_updates_that_are_given_up_are_no_flood(stage: Stage) -> None:
    """Many dead letters cause only one alert."""
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        await bot.ledger.inbox.store([(number, "chat:1", "{}") for number in range(9001, 9004)])
        for number in range(9001, 9004):
            await bot.apologies.given_up(number, "a mistake of ours")
            await bot.notices.settled()
        (told,) = await root.bot_messages()
        assert "update 9001" in told["text"]
