"""Reports for admins: /stats, its chart, and the schedule."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from bot.admin.stats_chart import draw
from bot.i18n import Translator
from storage.counts import Day
from storage.learning_records import Rating
from storage.ledger import Ledger
from storage.state_machines import RunState
from tests.bot.test_chat_admin import RUN
from tests.support.chatting import ADMIN, Notebook, Stage, final_reply, png
from tests.support.ledgers import exchange
from tests.support.person import DOWN, UP

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


async def test_days_are_counted_by_model(tmp_path: Path) -> None:
    """Daily statistics have one row per day and model and count only each rater's latest vote.

    Days before the requested start are omitted.
    """
    asked = ((NOON - 86400, "base"), (NOON, "base"), (NOON + 60, "run-1"), (NOON + 90, "run-1"))
    async with Ledger.open(tmp_path) as ledger:
        for update, (when, model) in enumerate(asked, 1):
            made = await ledger.exchanges.record(
                exchange(await ledger.sessions.open(1, 1), update, model=model, created=when)
            )
            await ledger.votes.cast(Rating(made.id, 1, 1, 10 * update))
            await ledger.votes.cast(Rating(made.id, 2, 1, 10 * update + 1))
            await ledger.votes.cast(Rating(made.id, 2, -1, 10 * update + 2))
        assert await ledger.counts.days(NOON - 43200) == [
            Day("2026-11-20", "base", 1, 1, 1),
            Day("2026-11-20", "run-1", 2, 2, 2),
        ]
        assert (await ledger.counts.days(0))[0] == Day("2026-11-19", "base", 1, 1, 1)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_picture_holds_many_models(language: str) -> None:
    """The chart can be drawn for many models and for a single day without votes, in English and Chinese.

    Warnings count as errors.
    """
    days = [Day("2026-11-20", f"run-{number}", 3, number % 3, number % 2) for number in range(12)]
    for shown in (days, days[:1]):
        written = draw(
            shown, datetime(2026, 10, 22).date(), datetime(2026, 11, 20).date(), Translator.load().to(language)
        )
        assert Image.open(io.BytesIO(written)).size == (960, 800)


async def test_stats_are_a_picture(stage: Stage) -> None:
    """/stats sends a chart with totals and each model's approval, or says that there is nothing to show."""
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        assert "Nobody asked" in (await final_reply(root, "/stats"))["text"]
        for wish in ("all", "99999"):
            assert "/stats DAYS, from 1 to 366" in (await final_reply(root, f"/stats {wish}"))["text"]
        for thumb, colour in ((UP, "red"), (UP, "blue"), (DOWN, "green")):
            await ada.toast(await ada.taps(thumb, await ada.asks(photo=png(colour=colour))))
        await root.sends("/stats 7")
        await stage.handled(bot)
        shown = (await root.bot_messages())[-1]
        assert "photo" in shown
        assert shown["caption"] == "Last 7 days: 3 answers, 2 👍, 1 👎.\nscripted: 67 % 👍 (21–94 %, 3 votes)"


async def test_the_schedule_is_told(stage: Stage) -> None:
    """/schedule shows the next run and the setting behind it (or that none is scheduled), and the latest run."""
    admin = Notebook()
    async with stage.bot(admin=admin), stage.person(ADMIN, "Root") as root:
        assert "retrain only when an admin sends /retrain" in (await final_reply(root, "/schedule"))["text"]
        admin.next_run = datetime(2027, 1, 2, 3, 0, tzinfo=UTC)
        admin.schedule = "0 3 * * *"
        admin.runs = [RUN, RUN]
        assert (await final_reply(root, "/schedule"))["text"].splitlines()[:3] == [
            "Next scheduled run: 2027-01-02 03:00 UTC",
            'Schedule: training.schedule = "0 3 * * *", in UTC.',
            f"Run 3: {RunState.TRAINING.value}",
        ]
