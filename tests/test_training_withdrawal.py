"""What was withdrawn leaves the files of runs; everything else in them stays as it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lessons import one_turn, photo
from training.llava import read_rows, row_name, write_rows
from training.run_folder import PICTURE, SHEET
from training.sheet import Row, Sheet
from training.sheet_picture import draw
from training.whole import write_whole
from training.withdrawal import withdraw


def test_rows_go_by_their_names(tmp_path: Path) -> None:
    """Every list of rows of every run loses the named ones; other files and other rows are left alone."""
    rows = [one_turn(row_name(number), "What?", f"Answer {number}.") for number in (1, 2, 12)]
    for run, name in (("1", "train.json"), ("1", "held_out.json"), ("2", "checked.jsonl")):
        (tmp_path / run).mkdir(exist_ok=True)
        write_rows(rows, tmp_path / run / name)
    write_rows(rows[1:], tmp_path / "2" / "train.json")
    report = {"id": row_name(1), "accepted": True}
    (tmp_path / "1" / "report.json").write_text(json.dumps(report))
    untouched = (tmp_path / "2" / "train.json").read_bytes()
    assert withdraw(tmp_path, [1, 99]) == 3
    for file in ("1/train.json", "1/held_out.json", "2/checked.jsonl"):
        kept = [row for _, row in read_rows(tmp_path / file)]
        assert [each["id"] for each in kept] == ["exchange-2", "exchange-12"]
        assert kept[0]["conversations"][1]["value"] == "Answer 2."
    assert (tmp_path / "2" / "train.json").read_bytes() == untouched
    assert json.loads((tmp_path / "1" / "report.json").read_text()) == report
    assert withdraw(tmp_path, [1]) == 0
    assert withdraw(tmp_path / "no runs yet", [1]) == 0


def test_what_was_not_written_to_its_end_goes_too(tmp_path: Path) -> None:
    """A full disk leaves no half of a file; what a killed process leaves of one goes with the words that it has."""
    rows = [json.dumps({"id": row_name(number), "conversations": "Is this rash bad?"}) for number in (1, 12)]

    def filling() -> Iterator[str]:
        yield rows[0] + "\n"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for run in ("1", "2"):
        (tmp_path / run).mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "1" / "checked.jsonl", filling())
    assert list((tmp_path / "1").iterdir()) == []
    (tmp_path / "1" / "checked.jsonl.part").write_text(rows[0] + "\n" + rows[1][:-9])
    (tmp_path / "1" / "sheet.html.part").write_bytes(f'<article id="{row_name(1)}">'.encode() + "很".encode()[:2])
    (tmp_path / "2" / "train.json.part").write_text("[" + rows[1])
    assert withdraw(tmp_path, [1]) == 2
    assert [each.name for each in sorted(tmp_path.rglob("*.part"))] == ["train.json.part"]


def test_sheets_go_with_what_they_show(tmp_path: Path) -> None:
    """A run's sheet, page and picture, is removed when one of its rows is withdrawn; those of other runs stay."""
    cup = tmp_path / "cup.jpg"
    cup.write_bytes(photo())
    for run, number in (("1", 1), ("2", 12)):
        (tmp_path / run).mkdir()
        row = Row.of(one_turn(row_name(number), "What?", "A cup.", cup.name), tmp_path, ("A cup.",))
        sheet = Sheet("Run", ("live",), (row,))
        sheet.write(tmp_path / run / SHEET)
        draw(sheet, tmp_path / run / PICTURE)
    assert withdraw(tmp_path, [1]) == 1
    assert list((tmp_path / "1").iterdir()) == []
    assert {each.name for each in (tmp_path / "2").iterdir()} == {SHEET, PICTURE}
    assert withdraw(tmp_path, [1]) == 0
