"""The rows of a run: liked answers, rows from several sources, and a reason for every invalid row."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import SYSTEM, drawn_job, drawn_lessons, settings
from tests.support.llava_files import BAD_ROWS, clot, foodie, mixed, said, spoil, write_file, write_photo
from training.data.llava import row, row_name, write_rows
from training.data.mixture import draw, draw_all, mix
from training.data.row_erasure import remove_rows
from training.data.row_parser import RowError, parse_row, read_rows
from training.data.validation import _CHUNK, Rules, Validator, ValidRow
from training.job import RATED, Job, Progress, TrainingError, ignore
from training.launcher import ChildTrainer
from training.settings import Source
from training.xtuner.encoding import IGNORE_INDEX, Encoder
from training.xtuner.finetune import prepare_data
from training.xtuner.scalars import losses


def job(folder: Path, *sources: dict[str, Any], rated: int = 4, **changes: Any) -> Job:
    """Return a job that trains on `rated` liked answers about drawn pictures and on `sources`."""
    return drawn_job(folder, rated, sources=list(sources), **changes)


def source(file: Path, repeat_times: float | None = None) -> dict[str, Any]:
    """Return the settings of a source with its pictures in the same folder as `file`."""
    return Source(path=file, images=file.parent, repeat_times=repeat_times).model_dump(mode="json")


def words(folder: Path, name: str, count: int) -> Path:
    """Write `count` text-only rows to the file `name` in `folder`."""
    rows = [{"conversations": said(f"What comes after {number}?", f"{number + 1}.")} for number in range(count)]
    return write_file(folder / name, rows)


def origins(file: Path) -> Counter[str]:
    """Return how often each row was drawn, by its origin, such as `train.json row 3`."""
    return Counter(str(row["origin"]).rpartition("/")[2] for _, row in read_rows(file))


@pytest.mark.parametrize(
    ("times", "fewest", "most", "total"),
    [(0.5, 0, 1, 5), (1, 1, 1, 10), (2.5, 2, 3, 25), (0.04, 0, 0, 0), (3, 3, 3, 30)],
)
def test_fractions_of_repeat_times(times: float, fewest: int, most: int, total: int) -> None:
    """A `repeat_times` of 0.5 draws half of the rows, and 2.5 draws each row twice and half of them once more."""
    drawn = Counter(draw(10, times, Random(1)))
    assert sum(drawn.values()) == total
    assert all(fewest <= drawn[number] <= most for number in range(10))


def test_sources_without_repeat_times_share_the_replay() -> None:
    """Rows of sources without `repeat_times` are equally likely to be drawn, whichever file they are in."""
    few, own, many = draw_all([2, 5, 38], [None, 0.2, None], 20, seed=3)
    assert (len(few) + len(many), len(own)) == (20, 1)
    assert len(set(many)) == len(many)
    few, _, many = draw_all([2, 5, 38], [None, 0.2, None], 100, seed=3)
    assert {*Counter(few).values(), *Counter(many).values()} == {2, 3}
    assert draw_all([3], [None], 0, seed=0) == [[]]


def test_the_seed_determines_the_draw() -> None:
    """The same seed draws the same rows from a source, and another seed draws other rows.

    Adding a source does not change the draw from the others.
    """
    drawn = draw_all([100, 100], [0.3, 0.3], 0, seed=1)
    assert draw_all([100, 100, 7], [0.3, 0.3, 2], 0, seed=1)[:2] == drawn
    assert draw_all([100, 100], [0.3, 0.3], 0, seed=2) != drawn
    assert drawn[0] != drawn[1]


def test_a_mixture_is_drawn_and_frozen(tmp_path: Path) -> None:
    """A run's mixture has each rated row once and each source's rows as often as `repeat_times` says.

    Sources without `repeat_times` together give one row per rated row. `mixture.json` records the numbers.
    """
    made = job(
        tmp_path / "run",
        source(foodie(tmp_path / "food"), 0.5),
        source(clot(tmp_path / "jokes"), 2.5),
        source(words(tmp_path, "words.jsonl", 30)),
        rated=6,
    )
    mixture = mix(made, CHECKPOINT, ignore)
    taken = origins(mixture.file)
    assert sum(taken.values()) == mixture.rows == 6 + 2 + 10 + 6
    assert list(mixture.samples.values()) == [6, 2, 10, 6]
    assert next(iter(mixture.samples)) == RATED
    assert [taken[f"train.json row {number}"] for number in range(1, 7)] == [1] * 6
    assert sorted(taken[f"ex_cn.json row {number}"] for number in range(1, 5)) == [2, 2, 3, 3]
    account = json.loads((tmp_path / "run" / "mixture.json").read_text(encoding="utf-8"))
    assert [each["samples"] for each in account["sources"]] == [2, 10, 6]
    first = mixture.file.read_bytes()
    assert mix(made, CHECKPOINT, ignore).file.read_bytes() == first, "a run can be done again"
    mix(replace(made, seed=1), CHECKPOINT, ignore)
    assert mixture.file.read_bytes() != first


def test_replay_can_be_more_or_none(tmp_path: Path) -> None:
    """`training.replay` sets how many samples per liked answer come from sources without `repeat_times`.

    The setting does not affect sources with `repeat_times`.
    """
    sources = (source(words(tmp_path, "a.jsonl", 50)), source(words(tmp_path, "b.json", 3), 1))
    for replay, wanted in ((2.5, 10), (0, 0)):
        mixture = mix(job(tmp_path / "run", *sources, replay=replay), CHECKPOINT, ignore)
        assert list(mixture.samples.values()) == [4, wanted, 3]


def test_a_row_of_another_bot_gets_another_name(tmp_path: Path) -> None:
    """Rows exported by another bot are renamed, so that erasing this bot's exchanges removes none of them."""
    theirs = [{"id": row_name(number), "conversations": said(f"Who is {number}?", "It.")} for number in range(4)]
    listed = source(write_file(tmp_path / "theirs.json", theirs), 1)
    made = job(tmp_path / "runs" / "1", listed, rated=4)
    rows = json.loads(Path(made.data).read_text(encoding="utf-8"))
    write_file(Path(made.data), [{**each, "id": row_name(number)} for number, each in enumerate(rows)])
    mixture = mix(made, CHECKPOINT, ignore)
    assert remove_rows(tmp_path / "runs", [2]) == 2, "one in train.json, one in checked.jsonl"
    left = origins(mixture.file)
    assert [left[f"theirs.json row {number}"] for number in range(1, 5)] == [1] * 4
    assert [left[f"train.json row {number}"] for number in range(1, 5)] == [1, 1, 0, 1]


def test_a_liked_answer_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    """A liked answer that is too long is left out and does not fail the run.

    `mixture.json` records the number of such answers. The replay is proportional to the remaining answers.
    """
    made = job(tmp_path / "run", source(words(tmp_path, "words.jsonl", 9)), rated=4)
    rows = json.loads(Path(made.data).read_text(encoding="utf-8"))
    rows[2]["conversations"][0]["value"] += " Why?" * 600
    write_file(Path(made.data), rows)
    mixture = mix(made, CHECKPOINT, ignore)
    assert list(mixture.samples.values()) == [3, 3]
    assert origins(mixture.file)["train.json row 3"] == 0
    assert mixture.longest <= made.max_length
    assert json.loads((tmp_path / "run" / "mixture.json").read_text(encoding="utf-8"))["too_long"] == 1


def test_a_picture_that_judges_is_not_learned_from_a_source(tmp_path: Path) -> None:
    """A source row about a picture that is used to judge the new model is left out and counted.

    The picture is recognized by its bytes.
    """
    made = job(tmp_path / "run", rated=4)
    judged = drawn_lessons(tmp_path / "run" / "pictures", 3, seed=9)[:1]
    write_rows(judged, tmp_path / "run" / "judged.json", lambda name: f"ab/{name}")
    (tmp_path / "same.jpg").write_bytes((tmp_path / "run" / "pictures" / judged[0].pictures[0]).read_bytes())
    write_photo(tmp_path / "other.jpg")
    rows = [{"image": f"{name}.jpg", "conversations": said("<image>\nWhat?", "It.")} for name in ("same", "other")]
    listed = source(write_file(tmp_path / "rows.json", rows), 1)
    mixture = mix(replace(made, sources=[listed], judged=str(tmp_path / "run" / "judged.json")), CHECKPOINT, ignore)
    assert origins(mixture.file)["rows.json row 2"] == 1
    assert origins(mixture.file)["rows.json row 1"] == 0
    account = json.loads((tmp_path / "run" / "mixture.json").read_text(encoding="utf-8"))
    assert account["sources"][0]["about_judged_pictures"] == 1


def test_every_kind_of_sample_is_drawn(tmp_path: Path) -> None:
    """The rows of a source may have no, one or several pictures, named by a string or a list.

    A source may also have a conversation of which only the last answer is learned.
    """
    mixture = mix(job(tmp_path / "run", source(mixed(tmp_path / "source"), 1)), CHECKPOINT, ignore)
    encoder = Encoder(CHECKPOINT)
    rows = {each["id"].removeprefix("source "): each for _, each in read_rows(mixture.file)}
    assert rows["2"]["conversations"][0]["value"] == "<image>\nWhich colour?", "moved to the front"
    assert rows["2"]["image"] == str(tmp_path / "source" / "blue.jpg")
    assert "image" not in rows["3"]
    assert len(rows["4"]["image_wh"]) == 2
    assert (rows["1"]["system"], rows["5"]["system"]) == (SYSTEM, "Be brief.")
    lesson = replace(parse_row(rows["5"], where="", system=""), sizes=((60, 40),))
    learned = [label for label in encoder.encode(lesson).labels if label != IGNORE_INDEX]
    assert encoder.tokenizer.decode(learned, skip_special_tokens=True) == "Only blue!"


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_every_invalid_row_is_named(tmp_path: Path, kind: str, form: str) -> None:
    """An invalid row raises an error that names the file and the row, even if the row would not be drawn."""
    spoil(tmp_path)
    bad, complaint = BAD_ROWS[kind]
    fine = {"image": "red.jpg", "conversations": said("<image>\nWhat?", "Red.")}
    file = tmp_path / f"rows.{form}"
    text = (
        json.dumps([fine, fine, bad, fine]) if form == "json" else "\n".join(map(json.dumps, (fine, fine, bad, fine)))
    )
    file.write_text(text)
    with pytest.raises(RowError, match=re.escape(str(file)) + f" row 3: .*{complaint}"):
        mix(job(tmp_path / "run", source(file, 0.25)), CHECKPOINT, ignore)
    assert not (tmp_path / "run" / "checked.jsonl").exists()


def test_all_invalid_rows_are_named_at_once(tmp_path: Path) -> None:
    """One error names all invalid rows, each on its own line.

    If there are many, the error lists the first ten and names a file that lists all of them.
    """
    spoil(tmp_path)
    file = write_file(
        tmp_path / "rows.json", [bad for bad, _ in BAD_ROWS.values() if bad != BAD_ROWS["half a character"][0]]
    )
    with pytest.raises(RowError) as caught:
        mix(job(tmp_path / "run", source(file)), CHECKPOINT, ignore)
    told = str(caught.value).splitlines()
    assert len(told) == 11
    assert told[-1] == f"… and 13 more: all 23 are in {tmp_path / 'run' / 'problems.txt'}"
    assert len((tmp_path / "run" / "problems.txt").read_text(encoding="utf-8").splitlines()) == 23


def test_a_broken_line_does_not_hide_the_others(tmp_path: Path) -> None:
    """A line that is not JSON is reported with its number, along with the other invalid rows of the file."""
    file = tmp_path / "rows.jsonl"
    fine = json.dumps({"conversations": said("Why?", "It.")})
    file.write_text(f"{fine}\n{{\n\n{fine}\n[]\n")
    with pytest.raises(RowError, match=r"rows\.jsonl row 2: is not JSON.*\n.*rows\.jsonl row 5: a row must be"):
        mix(job(tmp_path / "run", source(file)), CHECKPOINT, ignore)


@pytest.mark.parametrize(
    ("text", "complaint"), [("[]", "has no rows"), ("{}", "list of rows"), ("{}\n{}", "must end in .jsonl")]
)
def test_an_empty_file_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    """A source file that is empty or has another format raises an error."""
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(TrainingError, match=complaint):
        mix(job(tmp_path / "run", source(tmp_path / "rows.json")), CHECKPOINT, ignore)


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation returns the same rows and problems in the same order for any number of processes.

    Each picture is decoded only once.
    """
    monkeypatch.setattr("training.data.validation._ROWS_HERE", _CHUNK)
    spoil(tmp_path)
    rows: list[Any] = [{"image": "red.jpg", "conversations": said("<image>\nWhat?", "Red.")}] * 200
    rows[150] = BAD_ROWS["cut picture"][0]
    file = write_file(tmp_path / "rows.jsonl", rows)
    rules = Rules(CHECKPOINT, tmp_path / "home", tmp_path / "notes.jsonl", SYSTEM, 0, 512)
    told: list[tuple[int, int]] = []
    with Validator(rules, 2) as many:
        found = list(many.rows(file, tmp_path, lambda *each: told.append(each)))
    with Validator(replace(rules, index=None), 1) as one:
        # An error equals only itself.
        alone = list(one.rows(file, tmp_path, lambda *_: None))
    assert list(map(repr, found)) == list(map(repr, alone))
    assert [place for place, each in enumerate(found) if not isinstance(each, ValidRow)] == [150]
    problem = alone[150]
    assert isinstance(problem, RowError)
    assert (problem.__cause__, problem.__context__, problem.__traceback__) == (None, None, None), "pictures in memory"
    assert told[-1] == (200, 200)
    assert {Path(json.loads(line)[0]).name for line in (tmp_path / "notes.jsonl").read_text().splitlines()} == {
        "red.jpg"
    }


def test_a_changed_picture_is_decoded_again(tmp_path: Path) -> None:
    """A picture that has changed since it was indexed is decoded again."""
    write_photo(tmp_path / "red.jpg", size=(600, 400))
    file = write_file(tmp_path / "rows.json", [{"image": "red.jpg", "conversations": said("<image>\nWhat?", "It.")}])
    made = job(tmp_path / "run", source(file, 1), notes=str(tmp_path / "notes.jsonl"))
    mix(made, CHECKPOINT, ignore)
    (tmp_path / "red.jpg").write_bytes((tmp_path / "red.jpg").read_bytes()[:1500])
    with pytest.raises(RowError, match="cut off"):
        mix(made, CHECKPOINT, ignore)


def test_a_folder_of_pictures_may_be_a_link(tmp_path: Path) -> None:
    """A source's folder of pictures may be a symbolic link.

    A picture must be inside the folder once all links are followed.
    """
    foodie(tmp_path / "food")
    (tmp_path / "link").symlink_to("food")
    (tmp_path / "food" / "images" / "link.jpeg").symlink_to("0_IMG.jpeg")
    rows = [{"image": "images/link.jpeg", "conversations": said("<image>\nWhat?", "It.")}]
    file = write_file(tmp_path / "link" / "rows.json", rows)
    assert mix(job(tmp_path / "run", source(file, 1)), CHECKPOINT, ignore).rows == 5


def test_a_long_validation_reports_progress(tmp_path: Path) -> None:
    """Progress is reported while more than a thousand rows are validated."""
    told: list[Progress] = []
    mix(job(tmp_path / "run", source(words(tmp_path, "many.jsonl", 1100))), CHECKPOINT, told.append)
    assert told[-1] == Progress("checking", 1100, 1100)


def test_a_run_on_three_sources_learns(tmp_path: Path) -> None:
    """A run on liked answers and three sources is trained with XTuner, and the loss falls.

    The rows have no, one or two pictures.
    """
    several = [
        {
            "image": ["images/0_IMG.jpeg", "images/1_IMG.jpeg"],
            "conversations": said("<image>\n<image>\nRed?", "The first."),
        },
        {"conversations": said("What is red and blue?", "Purple.", "And red and yellow?", "Orange.")},
    ]
    food = foodie(tmp_path / "food")
    made = job(
        tmp_path / "run",
        source(food, 1.5),
        source(write_file(tmp_path / "food" / "several.jsonl", several), 3),
        source(words(tmp_path, "words.json", 12)),
        rated=8,
        epochs=3,
        targets="",
        learning_rate=1e-3,
    )
    outcome = asyncio.run(ChildTrainer(settings()).run(made))
    assert outcome.ok, outcome.reason
    assert outcome.samples == {RATED: 8, **dict(zip((each["path"] for each in made.sources), (6, 6, 8), strict=True))}
    values = [value for _, value in losses(Path(str(outcome.scalars)))]
    quarter = len(values) // 4
    assert len(values) == outcome.steps == 21
    assert sum(values[-quarter:]) < 0.7 * sum(values[:quarter])


def test_prepare_data_writes_the_mixture(tmp_path: Path) -> None:
    """`prepare_data` writes every sample of the mixture as a row with its length in tokens, for XTuner."""
    mixture = prepare_data(job(tmp_path / "run", source(words(tmp_path, "words.json", 9), 2)))
    rows = [each for _, each in read_rows(mixture.file)]
    assert len(rows) == mixture.rows == 4 + 18
    assert all(each["length"] > 0 for each in rows)
    assert row(parse_row(rows[-1], where="", system="")).items() <= rows[-1].items()
