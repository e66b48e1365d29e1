"""What other rooms say reaches admins in their language: each sentence as those rooms really word it."""

from __future__ import annotations

from pathlib import Path

import pytest

import training
from bot.admin.service import INTERRUPTED
from bot.cli.doctor.checks import TRAINER_MISSING
from bot.i18n import Translator
from bot.retelling import FORMER, KNOWN, _pattern, retold
from inference.messages import EngineUnavailable
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.records import Model
from storage.states import ModelState, RunState
from tests.support.lessons import rated, settings
from tests.support.pipelines import Room
from tests.support.speech import foreign
from tests.training.test_regression import asked, marks
from training.data.selection import CUT_OFF, select_pairs
from training.gate.evaluate import verdict
from training.job import TrainingError
from training.launcher import _crash_reason
from training.merged_models import NOT_THE_SAME
from training.trainable import QUANTIZED, UNKNOWN
from training.worker import explained

LONG_TO_BE_SAID = {
    "there is too little memory to compute 4 pairs at once": ("runner.py", "there is too little memory to compute "),
    "finetune took longer than training.timeout; the log is /l": (
        "launcher.py",
        " took longer than training.timeout; ",
    ),
    "all 3 liked answers have more than 512 tokens: raise max_length": ("mixture.py", " liked answers have more than "),
    "answers that it learned from were withdrawn meanwhile": ("pipeline.py", " were withdrawn meanwhile"),
    "the training diverged, w is not finite: lower training.knobs.learning_rate": (
        "merge.py",
        "diverged, {name} is not",
    ),
    CUT_OFF.format(cut=4, liked=10): ("selection.py", " were cut off at the longest answer"),
    QUANTIZED.format(base="/m"): ("trainable.py", "has quantized weights"),
    UNKNOWN.format(base="/m", found="LlavaModel"): ("trainable.py", "only an InternVL2 with InternLM2"),
    "The adapter of run-1 or its base model is gone: choose another model of /models": (
        "merged_models.py",
        " or its base model is gone: choose another model of /models",
    ),
    "0.1 GB are free on the disk of /m, merging run-1 again needs 4.4 GB: make room": (
        "merged_models.py",
        " GB are free on the disk of ",
    ),
    NOT_THE_SAME.format(model="run-1"): ("merged_models.py", " was merged again from its adapter and is not "),
}
"""What a worker has to run for, or people to leave, to have it said; and where in the training room that is written."""


async def said_by_other_rooms(folder: Path) -> list[str]:
    """Each of their sentences, from the code that says it as far as that takes no time."""
    said = [*LONG_TO_BE_SAID, _crash_reason("merge", "signal SIGKILL", "a cat", folder)]
    faults = ("non-finite", "CUDA out of memory", "DataLoader timed out")
    said += [str(explained(RuntimeError(words))) for words in faults]
    for wanted in (9, 1):
        with pytest.raises(TrainingError) as few:
            select_pairs([rated(1, ["a"])], {}, settings().model_copy(update={"min_rated": wanted}))
        said.append(str(few.value))
    loops = ["in circles " * 9, *[""] * 9]
    judged = verdict(
        marks(9, *loops, right=10), marks(9, *loops, right=0), asked(10), max_loss_points=2, differs="row 3"
    )
    said.append(judged.reason)
    room = Room(folder)
    room.base.mkdir()
    try:
        with pytest.raises(TrainingError) as full:
            room.pipeline(min_free_gigabytes=1e9)._check_disk()
        said.append(str(full.value))
    finally:
        await room.ledger.close()
    alone = Deployment(InferenceSettings(engine="cpu"), "base", folder, logs=folder)
    with pytest.raises(EngineUnavailable) as last:
        await alone.drain(alone.status().nodes[0].name)
    said.append(str(last.value))
    async with Ledger.open(folder / "other") as ledger:
        await ledger.models.add(Model("run-1", "", ModelState.CANDIDATE, None, 1.0))
        with pytest.raises(StorageError) as gone:
            await ledger.promotions.make("run-1")
        said.append(str(gone.value))
        run = await ledger.runs.start("admin", 7)
        await ledger.runs.move(run.id, RunState.CANCELLED)
        with pytest.raises(StorageError) as over:
            await ledger.runs.request_cancel(run.id)
        said.append(str(over.value))
    return said


async def test_other_rooms_are_understood(tmp_path: Path) -> None:
    """Every known sentence is still said in those words, stays so in English, and nothing of it is left in Chinese."""
    for file, wording in LONG_TO_BE_SAID.values():
        assert wording in (Path(training.__file__).parent / file).read_text(encoding="utf-8")
    voices, met = Translator.load(), set[str]()
    said = await said_by_other_rooms(tmp_path)
    for text in said:
        assert retold(text, voices.to("en")) == text
        for part in [text] if any(_pattern(each).fullmatch(text) for each in KNOWN) else text.split("; "):
            known = [each for each in KNOWN if _pattern(each).fullmatch(part)]
            assert known, part
            met |= {known[0]} | {each for each in KNOWN if each in part}
        assert retold(text, voices.to("zh")) != text
    assert retold(said[-1], voices.to("zh")) == "第 1 次训练已经结束（已取消），没有什么可取消的。"
    assert met == set(KNOWN)


def test_our_own_sentences_are_told_again() -> None:
    """What the bot itself has written into the ledger is of its catalogues, and told in them."""
    chinese = Translator.load().to("zh")
    assert "检查点" in retold(INTERRUPTED, chinese)
    assert foreign(retold(TRAINER_MISSING, chinese).replace("make demo", "").replace("make install", ""), "zh") == []


def test_what_nobody_knows_is_quoted_as_it_is() -> None:
    """The account of a technical fault stays to the letter, among known reasons too."""
    chinese = Translator.load().to("zh")
    assert retold("CUDA error: a; b", chinese) == "CUDA error: a; b"
    assert retold("", chinese) == ""
    assert retold("3 of its answers are empty or in loops; odd", chinese) == "它有 3 个回答是空的或者在重复；odd"


def test_reasons_of_earlier_versions_are_told_again() -> None:
    """A ledger has them as they were worded then."""
    chinese, met = Translator.load().to("zh"), set[str]()
    counts = "(rated 3, disliked 1, unfinished 0, too long 0, duplicates 0, selected 2, raters 1)"
    stored = (
        f"2 liked answers can teach, training.min_rated wants 8 {counts}: collect 6 more thumbs up, or lower "
        "training.min_rated.",
        f"All 9 liked answers are about one picture {counts}, so none can be kept apart to judge by: collect thumbs up "
        "on other pictures.",
        "it is no better on the liked answers that were kept apart (0.162 nats a token, the live model 0.160)",
        "it answers 90.0% of the factual questions right, the live model 97.0% (of 100 questions the live model alone "
        "has 9 right and the new one alone 2, as chance would have it in 0.1% of all runs)",
    )
    for text in stored:
        assert foreign(retold(text, chinese), "zh") == []
        met |= {each for each in FORMER if _pattern(each).fullmatch(text)}
    assert met == set(FORMER)
