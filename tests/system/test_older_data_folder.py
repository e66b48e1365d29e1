"""This version opens a data folder written by the release of commit 99303cf, and continues from it.

The older bot was killed during a training run, while two questions waited for answers; its scheduled
jobs are three days overdue. tests/fixtures/write_data_folder.py created the archive of the folder.
"""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from bot.admin.run_manager import INTERRUPTED
from bot.admin.schedule import STORE
from storage.state_machines import ModelState, RunState
from telegram_emulator.file_store import StoredFile
from tests.support.children import until
from tests.support.person import UP, Person, button
from tests.support.whole_bot import ADMIN, WholeBot, whole_bot, words

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "data_folder_99303cf.tar.gz"
ADA, BEN = 11, 12
WAITING = ["words:6 slow:1 What is this?", "And how many are there?"]
SETTINGS: dict[str, dict[str, Any]] = {
    "chat": {"album_seconds": 0.1, "answer_hours": 0},
    "storage": {"retention_days": 36_500},
    "training": {"schedule": "30 3 * * *"},
}


@pytest.fixture
async def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    """Yield a bot, not yet started, with the older bot's data folder and chats."""
    async with whole_bot(tmp_path, monkeypatch) as place:
        with tarfile.open(ARCHIVE) as archive:
            # Debian's Python 3.11.2 has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(tmp_path)
        telegram = json.loads((tmp_path / "telegram.json").read_bytes())
        for number, name in ((ADMIN, "Root"), (ADA, "Ada"), (BEN, "Ben")):
            await place.person(number, name, "en")
            for message in telegram["chats"][str(number)]:
                place.emulator.world.chats[number].messages[message["message_id"]] = message
        for name, data in telegram["files"].items():
            file = StoredFile(name, name, f"photos/{name}.jpg", "photo.jpg", "image/jpeg", bytes.fromhex(data))
            place.emulator.world.files._by_id[name] = file
        yield place


async def test_an_older_data_folder_works_on(older: WholeBot, caplog: pytest.LogCaptureFixture) -> None:
    """The bot continues with an older data folder without losing anything.

    Waiting questions are answered, overdue jobs run, old buttons work, and the unfinished run ends as
    failed.
    """
    chat = older.emulator.world.chats[ADA].messages
    begun = max(chat)
    assert button(chat[begun], "⏹")
    with structlog.testing.capture_logs() as events, caplog.at_level(logging.WARNING):
        async with older.running(**SETTINGS), older.ledger() as ledger:
            await until(lambda: not rows(ledger.path, "SELECT 1 FROM inbox WHERE state <> 'done'"), 60)
            answered = (await ledger.exchanges.history(1, 20))[-2:]
            assert [each.question for each in answered] == WAITING
            replies = [(await ledger.replies.for_update(each.update))[0].message or 0 for each in answered]
            assert [words(chat[each]) for each in replies] == [each.answer.strip() for each in answered]
            assert button(chat[replies[0]], UP) and replies[0] == begun, "the message that the older bot has begun"
            half_done = await ledger.runs.get(2)
            assert (half_done.state, half_done.reason) == (RunState.FAILED, INTERRUPTED)
            await older.says(ADMIN, lambda said: words(said).startswith("Run 2 failed"))
            scheduled = await older.ended(3)
            assert (scheduled.trigger, scheduled.state) == ("schedule", RunState.DONE)
            # The six liked answers. A correction that only its author has confirmed does not teach any more.
            assert scheduled.samples + scheduled.held_out == 6
            await older.says(ADMIN, lambda said: "Run 3 is done" in words(said))
            left = older.data / "runs" / "2"
            assert not [*left.glob("features"), *left.glob("xtuner/*.pth")], "the next run has removed them"
            models = {each.id: each.state for each in await ledger.models.all()}
            assert models == {"base": ModelState.RETIRED, "run-1": ModelState.RETIRED, "run-3": ModelState.LIVE}
            previous = await ledger.models.previous()
            assert previous is not None and previous.id == "run-1"

            assert await ledger.votes.latest(9, ADA) is None
            ada = Person(older.url, ADA)
            unrated = await ledger.replies.for_update((await ledger.exchanges.get(9)).update)
            assert await ada.toast(await ada.taps(UP, chat[unrated[0].message or 0]))
            assert await ledger.votes.latest(9, ADA) == 1
            await ada.close()

            counts = await ledger.counts.totals()
            assert [counts[name] for name in ("users", "exchanges", "votes", "runs")] == [3, 13, 10, 3]
            correction = await ledger.corrections.get(1)
            assert (correction.text, correction.confirmed_by) == ("Nothing is written here.", BEN)
            await until(lambda: not rows(ledger.path, "SELECT 1 FROM pictures WHERE state <> 'clean'"))
            assert jobs(older.data).keys() == {"retrain", "tidy", "expire"}
            assert all(when > time.time() for when in jobs(older.data).values()), "each has run"
    assert [each for each in events if each["log_level"] not in ("debug", "info")] == []
    assert [each.getMessage() for each in caplog.records] == []


def rows(file: Path, sql: str) -> list[Any]:
    """Return the rows that the query `sql` selects from the SQLite database `file`."""
    with closing(sqlite3.connect(file)) as database:
        return database.execute(sql).fetchall()


def jobs(data: Path) -> dict[str, float]:
    """Return the next run time of each stored job, by job ID.

    Also check that the functions of the jobs are those of this version.
    """
    stored = rows(data / STORE, "SELECT id, next_run_time, job_state FROM apscheduler_jobs")
    assert {pickle.loads(state)["func"].partition(":")[0] for *_, state in stored} == {"bot.admin.schedule"}
    return {name: when for name, when, _ in stored}
