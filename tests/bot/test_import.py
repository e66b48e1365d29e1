"""`thumbtune import` turns files into sources completely or not at all, and names every bad row.

Two test cases run the command with its worker process; the others call the worker's function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from bot.cli.import_export import import_file
from bot.config import Settings
from inference.images.decoder_worker import clean
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from tests.support.bot_process import command, write_config
from tests.support.llava_files import BAD_ROWS, clot, foodie, mixed, said, spoil, write_file
from training.command_jobs import ImportJob
from training.data.imported_sources import ABOUT, SourceInfo, imported
from training.data.importing import import_source
from training.data.row_parser import read_lessons, read_rows
from training.job import TrainingError, ignore


def job(file: Path, sources: Path, name: str = "mine", repeat_times: float | None = None) -> ImportJob:
    """Return a job that imports `file` into the folder `sources`."""
    return ImportJob(
        name=name,
        file=str(file),
        images=str(file.parent),
        out=str(sources),
        base=str(CHECKPOINT),
        work="",
        system=INTERNVL2.system,
        repeat_times=repeat_times,
        threads=1,
        max_length=512,
    )


async def by_command(file: Path, folder: Path) -> Path:
    """Import `file` with the command and return the folder of all sources."""
    write_config(folder / "config.toml", {"storage": {"dir": str(folder / "data")}, "training": {"threads": 1}})
    code, told = await command(folder / "config.toml", "import", str(file), "--images", str(file.parent))
    assert code == 0, told
    assert f"Imported 4 rows and 4 pictures as {file.stem}." in told
    assert "as many samples as liked answers" in told
    return folder / "data" / "sources"


async def by_worker(file: Path, folder: Path) -> Path:
    """Import `file` in this process and return the folder of all sources."""
    assert import_source(job(file, folder / "sources"), ignore).ok
    return folder / "sources"


@pytest.mark.parametrize(
    ("made", "how", "question"),
    [
        (foodie, by_command, "图片中的食物通常属于哪个菜系?"),
        (clot, by_worker, "请你根据这张图片，讲一个脑洞大开的梗"),
    ],
    ids=["foodie", "clot"],
)
async def test_the_tutorials_files_import_as_they_are(
    tmp_path: Path, made: Callable[[Path], Path], how: Callable[[Path, Path], Awaitable[Path]], question: str
) -> None:
    """The tutorials' files are imported with each row's picture at the front of its question.

    The pictures are re-encoded and named by their hash.
    """
    given = made(tmp_path / "given")
    (source,) = imported(await how(given, tmp_path))
    lessons = list(read_lessons(source.path, source.folder, system="Persona."))
    assert [each.turns[0].text for each in lessons] == [question] * 4
    before = [row["conversations"][1]["value"] for _, row in read_rows(given)]
    assert [each.turns[1].text for each in lessons] == before
    assert {each.system for each in lessons} == {"Persona."}, "a row without a persona has that of the day"
    originals = [given.parent / row["image"] for _, row in read_rows(given)]
    for lesson, original in zip(lessons, originals, strict=True):
        cleaned = clean(original.read_bytes(), 80).data
        digest = sha256(cleaned).hexdigest()
        assert lesson.pictures == (f"{digest[:2]}/{digest}",)
        assert (source.folder / lesson.pictures[0]).read_bytes() == cleaned


def test_every_kind_of_sample_is_imported_once(tmp_path: Path) -> None:
    """Text, albums and chats with one trained answer are imported.

    Another import under a name in use is refused and changes nothing.
    """
    given, sources = mixed(tmp_path / "given"), tmp_path / "sources"
    assert import_source(job(given, sources, repeat_times=2.5), ignore).ok
    (source,) = imported(sources)
    assert (source.path.parent, source.repeat_times) == (sources / "mine", 2.5)
    assert SourceInfo.read(sources / "mine" / ABOUT) == SourceInfo(str(given), 5, 2, 2.5, clean=True)
    ours = list(read_lessons(source.path, source.folder, system=""))
    theirs = list(read_lessons(given, given.parent, system=""))
    for our, their in zip(ours, theirs, strict=True):
        assert (our.name, our.system, our.learned, our.sizes) == (their.name, their.system, their.learned, their.sizes)
        assert [turn.text for turn in our.turns] == [turn.text for turn in their.turns]
    with pytest.raises(TrainingError, match="already exists: choose another --name"):
        import_source(job(foodie(tmp_path / "food"), sources), ignore)
    assert imported(sources) == [source]


async def test_bad_rows_are_all_named_and_nothing_is_imported(tmp_path: Path) -> None:
    """Every bad row is reported in one sentence with its file and row number, and nothing is imported."""
    spoil(tmp_path)
    fine = {"image": "red.jpg", "conversations": said("<image>\nWhat?", "Red.")}
    file = tmp_path / "rows.jsonl"
    rows = [row for bad, _ in BAD_ROWS.values() for row in (fine, bad)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_config(tmp_path / "c.toml", {"storage": {"dir": str(tmp_path / "data")}, "training": {"recipe": "tiny"}})
    code, told = await command(tmp_path / "c.toml", "import", str(file), "--images", str(tmp_path))
    assert code == 1
    assert f"{len(BAD_ROWS)} rows are invalid, so nothing was imported" in told
    for number, (_, complaint) in enumerate(BAD_ROWS.values(), 1):
        assert re.search(rf"^{re.escape(str(file))} row {2 * number}: .*{complaint}", told, re.MULTILINE), complaint
    assert list((tmp_path / "data" / "sources").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.json", None, "none.json: cannot be read"),
        ("rows.json", "[]", "has no rows"),
        ("rows.jsonl", "\n", "has no rows"),
        ("rows.txt", "a", "rows.txt: is not JSON"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    """The error for a file that cannot be imported names the file, and nothing is left behind."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TrainingError, match=words):
        import_source(job(tmp_path / name, tmp_path / "sources"), ignore)
    assert list((tmp_path / "sources").iterdir()) == []


async def test_an_import_that_dies_is_not_called_bad_rows(tmp_path: Path) -> None:
    """A crash of the import worker is reported as a crash, whatever the worker printed last."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor line in one two three; do echo $line >&2; done\nkill -9 $$\n")
    python.chmod(0o755)
    file = write_file(tmp_path / "rows.json", [{"conversations": said("Why?", "So.")}])
    settings = Settings.model_validate({"storage": {"dir": tmp_path / "data"}, "training": {"python": str(python)}})
    with pytest.raises(TrainingError, match=r"^the importing process died \(signal SIGKILL"):
        await import_file(settings, file, None)


def test_what_a_killed_import_left_is_no_source(tmp_path: Path) -> None:
    """A source folder left incomplete by a killed import is ignored by runs and replaced by the next import."""
    (tmp_path / "sources" / "mine.part" / "pictures").mkdir(parents=True)
    assert imported(tmp_path / "sources") == []
    assert import_source(job(clot(tmp_path / "given"), tmp_path / "sources"), ignore).ok
    assert [each.name for each in (tmp_path / "sources").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": Path("/nowhere")}, "pass the folder of the pictures with --images"),
        ({"name": "../up"}, "choose a --name"),
        ({"name": "x.part"}, "choose a --name"),
    ],
)
async def test_a_name_or_folder_that_will_not_do_is_said(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """An unusable source name or picture folder is refused before anything is read."""
    file = write_file(tmp_path / "rows.json", [{"conversations": said("Why?", "So.")}])
    given = {"images": None, "name": "", **changes}
    with pytest.raises(TrainingError, match=words):
        await import_file(Settings(), file, repeat_times=None, **given)
