"""Removing rows from the files of runs changes nothing else."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from storage.atomic_files import write_text
from tests.support.lessons import one_turn, photo
from tests.support.llava_files import write_file
from training.data.llava import row, row_name, write_rows
from training.data.row_erasure import LOCK, remove_rows
from training.data.row_parser import read_rows
from training.gate.comparison_sheet import Row, Sheet
from training.gate.comparison_sheet_png import draw
from training.gate.comparison_sheet_translations import localized
from training.run_folder import PICTURE, SHEET

ROOT = Path(__file__).parents[2]


def test_rows_are_removed_by_name(tmp_path: Path) -> None:
    """Rows are removed by name from the row files of every run; other files and rows stay."""
    rows = [one_turn(row_name(number), "What?", f"Answer {number}.") for number in (1, 2, 12)]
    for run, name in (("1", "train.json"), ("1", "judged.json"), ("2", "train.json")):
        (tmp_path / run).mkdir(exist_ok=True)
        write_rows(rows if run == "1" else rows[1:], tmp_path / run / name)
    write_file(tmp_path / "2" / "checked.jsonl", [row(each) for each in rows])
    report = {"id": row_name(1), "accepted": True}
    (tmp_path / "1" / "report.json").write_text(json.dumps(report))
    untouched = (tmp_path / "2" / "train.json").read_bytes()
    assert remove_rows(tmp_path, [1, 99]) == 3
    for file in ("1/train.json", "1/judged.json", "2/checked.jsonl"):
        kept = [row for _, row in read_rows(tmp_path / file)]
        assert [each["id"] for each in kept] == ["exchange-2", "exchange-12"]
        assert kept[0]["conversations"][1]["value"] == "Answer 2."
    assert (tmp_path / "2" / "train.json").read_bytes() == untouched
    assert json.loads((tmp_path / "1" / "report.json").read_text()) == report
    assert remove_rows(tmp_path, [1]) == 0
    assert remove_rows(tmp_path / "no runs yet", [1]) == 0


def test_incomplete_files_are_removed_too(tmp_path: Path) -> None:
    """A write that fails on a full disk leaves no partial file.

    A partial file left by a killed process is removed if it contains a row to remove.
    """
    rows = [json.dumps({"id": row_name(number), "conversations": "Is this rash bad?"}) for number in (1, 12)]

    def filling() -> Iterator[str]:
        yield rows[0] + "\n"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for run in ("1", "2"):
        (tmp_path / run).mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "1" / "checked.jsonl", filling())
    assert list((tmp_path / "1").iterdir()) == []
    (tmp_path / "1" / "checked.jsonl.part").write_text(rows[0] + "\n" + rows[1][:-9])
    (tmp_path / "1" / "sheet.html.part").write_bytes(f'<article id="{row_name(1)}">'.encode() + "很".encode()[:2])
    (tmp_path / "2" / "train.json.part").write_text("[" + rows[1])
    assert remove_rows(tmp_path, [1]) == 2
    assert [each.name for each in sorted(tmp_path.rglob("*.part"))] == ["train.json.part"]


def test_sheets_are_removed_with_their_rows(tmp_path: Path) -> None:
    """Sheets that show a removed row are removed in every language; sheets of other runs stay."""
    cup = tmp_path / "cup.jpg"
    cup.write_bytes(photo())
    for run, number in (("1", 1), ("2", 12)):
        (tmp_path / run).mkdir()
        row = Row.from_lesson(one_turn(row_name(number), "What?", "A cup.", cup.name), tmp_path, ("A cup.",))
        sheet = Sheet("Run", ("live",), (row,))
        sheet.write(tmp_path / run / SHEET)
        draw(sheet, tmp_path / run / PICTURE)
        for name in (SHEET, PICTURE):
            (tmp_path / run / localized(name, "zh")).write_bytes((tmp_path / run / name).read_bytes())
    assert remove_rows(tmp_path, [1]) == 1
    assert list((tmp_path / "1").iterdir()) == []
    assert {each.name for each in (tmp_path / "2").iterdir()} == {SHEET, PICTURE, "sheet.zh.html", "sheet.zh.png"}
    assert remove_rows(tmp_path, [1]) == 0


REMOVES = """
import sys
from pathlib import Path
from training.data import row_erasure

def pause_and_write(file, text):
    print("has read", flush=True)
    if sys.stdin.readline():
        write(file, text)

write = row_erasure.write_text
row_erasure.write_text = pause_and_write
print(row_erasure.remove_rows(Path(sys.argv[1]), [int(sys.argv[2])]))
"""


def test_two_processes_rewrite_a_file_one_after_the_other(tmp_path: Path) -> None:
    """If two processes remove rows from a file at the same time, neither restores rows that the other removed."""
    (tmp_path / "1").mkdir()
    file = tmp_path / "1" / "train.json"
    write_rows([one_turn(row_name(number), "What?", "A cup.") for number in (1, 2, 3)], file)

    def process(exchange: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", REMOVES, str(tmp_path), str(exchange)]
        return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with process(1) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "has read\n"
        with process(2) as second:
            with contextlib.suppress(subprocess.TimeoutExpired):
                second.communicate("now\n", 3)  # if nothing blocked it, it would have read and written by then
            first.communicate("now\n")
            second.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert [row["id"] for _, row in read_rows(file)] == [row_name(3)]


def test_a_lock_that_is_not_released_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process does not release the lock, removing rows raises an error after a limited time."""
    monkeypatch.setattr("training.data.row_erasure.LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / LOCK), pytest.raises(OSError, match=LOCK):
        remove_rows(tmp_path, [1])
