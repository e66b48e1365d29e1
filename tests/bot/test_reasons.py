"""Reasons keep their template and values, so that they can be shown in each admin's language.

Errors, files and the ledger all preserve the template and values.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from bot.admin.refusals import AdminRefusal, refused
from bot.admin.run_manager import INTERRUPTED
from bot.i18n import Translator
from inference.internvl2.tiny import CHECKPOINT
from storage.errors import StorageError
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.state_machines import ModelState, RunState
from storage.translatable_reason import Reason, join
from tests.support.judging import forgetting
from tests.support.lessons import rated, settings
from tests.support.pipelines import Room
from tests.support.speech import foreign
from training.base_model_check import trainer_missing, untrainable
from training.data.selection import select_pairs
from training.gate.comparison_sheet_translations import words
from training.gate.judge_candidate import verdict
from training.gate.report import Report, Taste
from training.job import Outcome, TrainingError
from training.launcher import _crash_reason
from training.run_plan import check_disk
from training.worker import explained

WORN = Reason("{reason}; {others}", reason=Reason("cancelled"), others=Reason("the cat {verb}", verb="sat"))


def judged() -> Report:
    """Return an evaluation report on a candidate that is worse by every measure."""
    forgotten = forgetting(10, lost=10, answer="in circles " * 19)
    return verdict(Taste(answers=40, high=0.55), forgotten, "row 3")


async def raised(folder: Path) -> list[str]:
    """Return reasons from all packages, raising the actual errors where doing so is fast."""
    found = [_crash_reason("merge", "signal SIGKILL", "a cat", folder), judged().reason]
    found += [str(explained(RuntimeError(said))) for said in ("non-finite", "out of memory", "DataLoader timed out")]
    with pytest.raises(TrainingError) as few:
        select_pairs([rated(1, ["a"])], {}, settings().model_copy(update={"min_rated": 9}))
    found.append(str(few.value))
    room = Room(folder)
    room.base.mkdir()
    found.append(untrainable(room.base) or "")
    room.base = CHECKPOINT
    try:
        with pytest.raises(TrainingError) as full:
            check_disk(room.pipeline(min_free_gigabytes=1e9).planner.specs, room.models.directory)
        found.append(str(full.value))
    finally:
        await room.ledger.close()
    async with Ledger.open(folder / "other") as ledger:
        await ledger.models.add(Model("run-1", "", ModelState.CANDIDATE, None, 1.0))
        with pytest.raises(StorageError) as gone:
            await ledger.promotions.make("run-1")
        found.append(str(gone.value))
        run = await ledger.runs.start("admin", 7)
        await ledger.runs.move(run.id, RunState.CANCELLED)
        with pytest.raises(StorageError) as over:
            await ledger.runs.request_cancel(run.id)
        found.append(str(over.value))
    return found


def not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


async def test_errors_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors from every package are unchanged in English and translated into Chinese."""
    english, chinese = Translator.load().to("en"), Translator.load().to("zh")
    found = await raised(tmp_path)
    monkeypatch.setattr("training.base_model_check.version", not_installed)
    for reason in found:
        assert isinstance(reason, Reason), reason
        assert english(reason) == reason
        assert chinese(reason) != reason
    assert chinese(found[-1]) == "第 1 次训练已经结束（已取消），无需取消。"
    assert refused(StorageError(found[-1]), chinese).endswith(chinese(found[-1]))
    assert foreign(refused(AdminRefusal(INTERRUPTED), chinese), "zh") == []
    missing = chinese(trainer_missing() or "")
    assert missing and foreign(missing.replace("make demo", "").replace("make install", ""), "zh") == []


async def test_the_ledger_keeps_what_a_translation_needs(tmp_path: Path) -> None:
    """Reasons in the ledger keep their template and values after a restart; plain text stays plain text."""
    async with Ledger.open(tmp_path) as ledger:
        run = await ledger.runs.start("admin", 7)
        assert (await ledger.runs.move(run.id, RunState.FAILED, reason=WORN)).reason == "cancelled; the cat sat"
        await ledger.models.add(Model("run-1", "/m", ModelState.REJECTED, run.id, 1.0, reason=WORN))
        await ledger.models.add(Model("run-2", "/m", ModelState.CANDIDATE, run.id, 1.0))
        await ledger.models.move("run-2", ModelState.REJECTED, WORN)
        await ledger.models.add(Model("run-3", "/m", ModelState.REJECTED, run.id, 1.0, reason="it rained"))
    async with Ledger.open(tmp_path) as ledger:
        kept = [(await ledger.runs.get(run.id)).reason, *(each.reason for each in await ledger.models.all())]
    chinese = Translator.load().to("zh")
    assert [chinese(each) for each in kept] == [*["已取消；the cat sat"] * 3, "it rained"]


def test_files_between_processes_keep_it_too() -> None:
    """The files for worker outcomes and evaluation reports keep the template and values of each reason.

    Files from earlier versions, which store reasons as plain text, can still be read.
    """
    outcome = Outcome.from_json(Outcome(ok=False, reason=WORN).to_json())
    report = Report.from_json(judged().to_json())
    chinese = Translator.load().to("zh")
    assert (outcome.reason, chinese(outcome.reason)) == (WORN, "已取消；the cat sat")
    assert (report.reason, chinese(report.reason)) == (judged().reason, chinese(judged().reason))
    assert Report.from_json('{"accepted": false, "reason": "it rained"}').reason == "it rained"


def test_a_verdict_says_the_same_on_the_sheet() -> None:
    """The sheet, which a worker writes with its own message catalogue, words a verdict exactly as the bot does."""
    reason = judged().reason
    assert words("en")(reason) == reason
    assert words("zh")(reason) == Translator.load().to("zh")(reason)
    assert foreign(words("zh")(reason).replace("row", ""), "zh") == []


def test_plain_texts_are_shown_as_they_are() -> None:
    """Technical errors and reasons stored by earlier versions are shown unchanged, braces included."""
    chinese = Translator.load().to("zh")
    for text in (
        "CUDA error: {a; b}",
        "it is no better on the liked answers that were kept apart (0.2 nats a token)",
        "",
    ):
        assert chinese(text) == text
    assert chinese(
        join([Reason("{number} of its answers are empty or repeat themselves", number=3), Reason("odd")])
    ) == ("有 3 条回答为空或不断重复；odd")
    assert chinese("That didn't work: {reason}", reason="{x}").endswith("{x}")


def test_a_reason_is_a_string() -> None:
    """Two reasons with the same text are equal, whatever their templates and values."""
    assert Reason("the cat {verb}", verb="sat") == "the cat sat" == Reason("the cat sat")
    assert replace(Outcome(ok=False, reason=WORN), seconds=1).reason == WORN
