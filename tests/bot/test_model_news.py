"""What admins hear of changes of models that other processes made, and what becomes of messages with buttons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bot.admin.canary_trial import STOPPED
from bot.admin.model_news import ModelNews, what_happened
from bot.admin.notifications import AWAITS
from bot.cli import control
from bot.i18n import Translator
from storage.learning_records import Actor, Model
from storage.model_buttons import ModelMessage
from storage.state_machines import ModelState, RunState
from tests.bot.test_admin_buttons import RUN
from tests.bot.test_canary import taught
from tests.support.chatting import Stage, png
from tests.support.whole_bot import ADMIN, WholeBot, whole_bot, words

CANDIDATE, CANARY = ModelState.CANDIDATE, ModelState.CANARY
ANNOUNCED = "Changed on the command line: {model} now answers everyone."


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    async with whole_bot(tmp_path, monkeypatch) as made:
        yield made


def announcements(place: WholeBot, model: str) -> int:
    """Return how many messages have announced a promotion of `model` that the command line requested."""
    text = ANNOUNCED.format(model=model)
    return sum(words(each) == text for each in place.emulator.world.chats[ADMIN].messages.values())


async def test_a_promotion_on_the_command_line_is_announced_once(
    place: WholeBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The admins hear once of `thumbtune rollback` and `promote`, even if the bot stops before it announces them."""
    printed = StringIO()  # the bot, in the same process, logs to standard output
    monkeypatch.setattr(control, "results", Console(file=printed))
    async with place.running(), place.ledger() as ledger:
        admin = await taught(place)
        await admin.command("/retrain")
        await place.ended(1)
        async with asyncio.timeout(30):
            while not await ledger.runs.is_settled(1):
                await asyncio.sleep(0.02)
        await control.rollback(ledger, lambda: True, False)
        assert printed.getvalue() == "base is live.\n"
        told = await place.says(ADMIN, lambda said: words(said) == ANNOUNCED.format(model="base"))
    async with place.ledger() as ledger:
        asked = await ledger.promotions.request("run-1")
        await ledger.promotions.finish(asked.id)
        unfinished = await ledger.promotions.request("base", back=True)
        assert [each.id for each in await ledger.promotions.unannounced()] == [asked.id]
        for _ in range(2):
            async with place.running(), asyncio.timeout(30):
                while await ledger.promotions.pending() or await ledger.promotions.unannounced():
                    await asyncio.sleep(0.02)
        assert (await ledger.promotions.get(unfinished.id)).done
        await place.says(ADMIN, lambda said: words(said) == ANNOUNCED.format(model="base"), after=told["message_id"])
    assert (announcements(place, "run-1"), announcements(place, "base")) == (1, 2)


async def test_a_refused_promotion_is_not_announced(place: WholeBot) -> None:
    """A requested promotion that fails is reported by the command only."""
    async with place.ledger() as ledger:
        await ledger.models.add(Model("run-9", str(place.data / "models" / "run-9"), CANDIDATE, None, 1.0))
        asked = await ledger.promotions.request("run-9")
        async with place.running(), asyncio.timeout(30):
            while not (await ledger.promotions.get(asked.id)).error:
                await asyncio.sleep(0.02)
        assert await ledger.promotions.unannounced() == []


@pytest.mark.parametrize("pictured", [True, False])
async def test_a_notice_says_what_happened_since(stage: Stage, tmp_path: Path, pictured: bool) -> None:
    """What happened follows the text of a run's notice, or the caption of its picture, which is cut to make room."""
    picture = tmp_path / "sheet.png"
    picture.write_bytes(png())
    candidate = Model("run-1", "/m", CANDIDATE, None, 1.0, reason="long " * 300)
    run = replace(RUN, state=RunState.DONE, model=candidate.id)
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        await bot.ledger.models.add(Model("base", "/b", ModelState.LIVE, None, 1.0))
        await bot.ledger.models.add(candidate)
        await bot.notices.run_finished(run, candidate, picture if pictured else None, awaits=AWAITS)
        await bot.ledger.canaries.start(candidate.id, 0.5, Actor("Olga"))
        await ModelNews(bot.bot, bot.ledger, bot.notices, bot.translator).tell()
        (told,) = await root.bot_messages()
    assert ("photo" in told, "reply_markup" in told) == (pictured, False)
    assert words(told).startswith("Run 1 is done. Model run-1: candidate.\nLong long ")
    assert words(told).endswith("\nrun-1 was approved and is a canary now. Decided by Olga.")
    assert ("…" in words(told), len(words(told)) <= 1024) == (pictured, pictured)


@pytest.mark.parametrize(
    ("was", "now", "by", "text"),
    [
        (CANDIDATE, {"state": CANARY}, "Olga", "run-1 was approved and is a canary now. Decided by Olga."),
        (CANDIDATE, {"state": ModelState.LIVE}, "", "run-1 was approved and now answers everyone."),
        (CANARY, {"state": ModelState.LIVE}, "", "run-1 now answers everyone."),
        (CANARY, {"state": ModelState.RETIRED}, "", "run-1 went live; another model has replaced it since."),
        (
            CANARY,
            {"state": ModelState.REJECTED, "reason": STOPPED},
            "Olga",
            "run-1 was rejected. An admin stopped its trial. Decided by Olga.",
        ),
        (CANARY, {}, "", "run-1 is a candidate again: its trial could not go on after a restart."),
        (CANDIDATE, {"directory": ""}, "Olga", "run-1 was deleted. Decided by Olga."),
    ],
)
def test_what_happened_is_said(was: ModelState, now: dict[str, Any], by: str, text: str) -> None:
    """A message says what became of its model and, if it is known, who decided that."""
    model = replace(Model("run-1", "/m", CANDIDATE, 1, 1.0, changed_by=by), **now)
    assert what_happened(ModelMessage(7, 1, model, was, "", caption=False), Translator.load().to("en")) == text
