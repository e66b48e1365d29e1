"""Disliked and rejected answers in a selection, in the rows of a run, and in training samples."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.internvl2.tiny import CHECKPOINT
from storage.learning_records import Preference, RatedExchange
from tests.support.lessons import SYSTEM, drawn_job, drawn_lessons, one_turn, rated, settings
from tests.support.llava_files import said, write_file
from training.data.llava import Rejected, row, write_rows
from training.data.mixture import mix
from training.data.rated_lessons import Pair, with_rejected
from training.data.row_erasure import remove_rows
from training.data.row_parser import RowError, parse_row
from training.data.selection import TRAIN, WORSE, Selection, select_pairs
from training.job import DISLIKED, RATED, Job, ignore
from training.settings import Source
from training.xtuner.encoding import IGNORE_INDEX


def select(rows: Sequence[RatedExchange], phashes: Mapping[str, str] | None = None, **changes: Any) -> Selection:
    """Select pairs for KTO from `rows` with permissive settings, overridden by `changes`."""
    found = settings().model_copy(update={"min_rated": 1, "threshold": 0, "near_duplicate": 4, **changes})
    return select_pairs(rows, phashes or {}, found, objective="kto", max_length=10_000)


def disliked(selection: Selection) -> list[int]:
    """Return the IDs of the disliked exchanges to train on."""
    return [each.id for each in selection.train if not each.lesson.liked]


def test_disliked_answers_are_selected() -> None:
    """An answer with more thumbs down than thumbs up is selected as disliked.

    Ties, corrected exchanges, repetitions, and answers that are unfinished or too long are left out.
    """
    rows = [
        *(rated(number, [f"p{number}"], ups=2) for number in (1, 2, 3)),
        rated(4, "d", ups=1, downs=3),
        rated(5, "e", ups=1, downs=1),
        rated(6, "f", ups=0, downs=1, finish="length"),
        replace(rated(7, "g", ups=0, downs=3), corrected=True),
        rated(8, "d", ups=0, downs=4, question="Question 4?", answer="Answer 4."),
        rated(9, "h", ups=0, downs=1, prompt_tokens=20_000),
        rated(10, "i", ups=0, downs=1),
    ]
    selection = select(rows)
    assert disliked(selection) == [4, 10]
    assert selection.liked == 4
    assert [each for each, split in selection.rows() if split == WORSE] == [4, 10]
    assert disliked(select(rows, threshold=1)) == [4], "one thumb more is needed"


def test_rejected_answers_join_their_pairs() -> None:
    """A pair gets the newest worse answer to its prompt as its rejected answer.

    The run's selection contains the rejected exchange only once.
    """
    selection = select_pairs(
        [rated(number, [f"p{number}"]) for number in (1, 2, 3)],
        {},
        settings().model_copy(update={"min_rated": 1}),
    )
    taught = selection.train[0]
    worse = [Preference(taught.rated, "Bad.", 8), Preference(taught.rated, "Worse.", 9)]
    found = with_rejected(selection.train, worse)
    assert found[0].lesson.rejected == Rejected("exchange-9", "Worse.")
    assert found[1:] == list(selection.train[1:])
    assert [each for each in rows_with(selection, found) if each[1] == WORSE] == [(9, WORSE)]
    found = with_rejected(selection.train, [Preference(taught.rated, "Bad.", taught.id)])
    assert (taught.id, TRAIN) in rows_with(selection, found), "a correction and its exchange"


def rows_with(selection: Selection, train: list[Pair]) -> list[tuple[int, str]]:
    """Return the rows of `selection` after replacing its pairs to train on with `train`."""
    return replace(selection, train=tuple(train)).rows()


def test_one_person_cannot_dislike_everything() -> None:
    """A disliked answer counts for one of the raters who dislike it, and no rater exceeds the allowed share."""
    rows = [rated(number, [f"p{number}"], ups=2) for number in range(1, 7)]
    rows += [replace(rated(10 + number, [f"q{number}"], ups=0), raters=(number % 4,), downs=1) for number in range(8)]
    rows += [replace(rated(30 + number, [f"r{number}"], ups=0), raters=(99,), downs=1) for number in range(20)]
    found = disliked(select(rows))
    assert found == [*range(10, 18), *range(44, 50)], "the newest of who dislikes most, twice what the median likes"


def test_a_row_keeps_both(tmp_path: Path) -> None:
    """A row's dislike or rejected answer survives writing and reading.

    A special token in a rejected answer becomes plain text.
    """
    lesson = one_turn("exchange-1", "What?", "A cup.")
    for each in (replace(lesson, liked=False), replace(lesson, rejected=Rejected("exchange-2", "A <image> dog."))):
        read = parse_row(row(each), where="here", system=SYSTEM)
        assert read.liked == each.liked
        assert (read.rejected is None) == (each.rejected is None)
    assert read.rejected is not None
    assert "<image>" not in read.rejected.text
    assert row(lesson).keys() == {"id", "system", "conversations"}


@pytest.mark.parametrize("wrong", [{"liked": "no"}, {"rejected": "A dog."}, {"rejected": {"value": " "}}])
def test_mistakes_in_a_row_are_named(wrong: dict[str, Any]) -> None:
    """An invalid `liked` or `rejected` entry raises an error that names the row and the entry."""
    with pytest.raises(RowError, match=rf"here: {next(iter(wrong))}"):
        parse_row({"conversations": said("Hi", "Ho"), **wrong}, where="here", system=SYSTEM)


def test_erasing_a_rejected_answer_removes_its_row(tmp_path: Path) -> None:
    """Erasing an exchange removes any row in which its answer is the rejected one.

    The row may belong to another user's exchange.
    """
    (tmp_path / "1").mkdir()
    lessons = [replace(one_turn("exchange-1", "What?", "A cup."), rejected=Rejected("exchange-2", "A dog."))]
    lessons += [replace(one_turn("exchange-3", "Who?", "It."), liked=False)]
    write_rows([*lessons, one_turn("exchange-4", "Who?", "Me.")], tmp_path / "1" / "train.json")
    assert remove_rows(tmp_path, [2, 3]) == 2
    assert [each["id"] for each in json.loads((tmp_path / "1" / "train.json").read_text())] == ["exchange-4"]


def half_disliked(folder: Path, rows: int = 5, **changes: Any) -> Job:
    """Return a job in which every second row is disliked and the third row has a rejected answer."""
    job = drawn_job(folder, rows, **changes)
    lessons = drawn_lessons(Path(job.images), rows)
    marked = [replace(each, liked=place % 2 == 0) for place, each in enumerate(lessons)]
    marked[2] = replace(marked[2], rejected=Rejected("exchange-9", "No idea, and I will not look for it either."))
    write_rows(marked, Path(job.data))
    return job


def test_both_kinds_are_counted(tmp_path: Path) -> None:
    """Liked and disliked answers are counted separately, and the replay depends on the liked ones alone.

    A source with a disliked answer raises an error.
    """
    rows = [{"conversations": said(f"What comes after {number}?", f"{number + 1}.")} for number in range(9)]
    file = write_file(tmp_path / "more.json", rows)
    source = Source(path=file, images=tmp_path).model_dump(mode="json")
    job = half_disliked(tmp_path / "run", sources=[source], objective="kto")
    assert mix(job, CHECKPOINT, ignore).samples == {RATED: 3, DISLIKED: 2, str(file): 3}
    write_file(file, [{**rows[0], "liked": False}])
    with pytest.raises(RowError, match="cannot have disliked answers"):
        mix(job, CHECKPOINT, ignore)


def test_samples_have_a_second_answer(tmp_path: Path) -> None:
    """The second answer of a KTO sample is another row's answer; that of a DPO sample is the rejected answer.

    All repetitions of a row have the same row number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XTuner's imports, not ours
        from training.xtuner.dataset import LessonDataset
        from training.xtuner.preference_model import collate_answers

    job = half_disliked(tmp_path)
    mixture = mix(job, CHECKPOINT, ignore)
    lessons = {"path": str(mixture.file), "images": job.images, "system": SYSTEM}
    kto, dpo = (
        LessonDataset(str(CHECKPOINT), lessons, objective=name, repeat_times=2, max_length=512)
        for name in ("kto", "dpo")
    )
    lengths = [json.loads(line)["length"] for line in mixture.file.read_text().splitlines()]
    assert lengths[2] == len(kto[2]["input_ids"]) + len(dpo[2]["other_ids"]) - len(dpo[2]["input_ids"]), "the longer"

    def answer(sample: dict[str, Any], labels: str) -> list[int]:
        return [label for label in sample[labels] if label != IGNORE_INDEX]

    assert len(kto) == 10
    for index in range(10):
        sample, far = kto[index], kto[(index + 2) % 5]
        assert (sample["row"], sample["liked"]) == (index % 5, index % 5 % 2 == 0)
        assert answer(sample, "other_labels") == answer(far, "labels")
        start = len(sample["input_ids"]) - len(answer(sample, "labels"))
        assert sample["other_ids"][:start] == sample["input_ids"][:start], "the prompt is the sample's own"
    assert [dpo[index]["paired"] for index in range(5)] == [False, False, True, False, False]
    assert dpo[0]["other_ids"] == dpo[0]["input_ids"]
    batch = collate_answers([kto[0], kto[1]], "kto")["data"]
    assert batch["liked"].tolist() == [True, False]
    assert batch["row"].tolist() == [0, 1]
    assert len(batch["other"]["pixel_values"]) == len(batch["pixel_values"])
    pairs = collate_answers([dpo[2], dpo[3]], "dpo")["data"]
    assert len(pairs["pixel_values"]) == 2, "both answers of a pair share their prompt"
    for name, answers in (("labels", "labels"), ("other_labels", "other_labels")):
        learned = pairs[name] != IGNORE_INDEX
        for place, each in enumerate((dpo[2], dpo[3])):
            owned = pairs["sample_ids"] == place + (2 if name == "other_labels" else 0)
            assert pairs[name][learned & owned].tolist() == answer(each, answers)
        assert int(learned.sum()) == sum(len(answer(each, answers)) for each in (dpo[2], dpo[3]))
