"""Rewrite the rows that runs keep, to remove erased exchanges and to rename pictures.

Only one process at a time may remove rows: if two processes read the same file, the second one to write
it would restore the rows that the first one removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from storage.atomic_files import PART, write_text
from training.data.llava import row_name
from training.gate.comparison_sheet_translations import LANGUAGES, localized
from training.run_folder import PICTURE, SHEET
from training.xtuner.resume import remove_state

LOCK: Final = "withdrawal.lock"
LOCK_SECONDS: Final = 30.0
"""How long to wait for another process, in seconds; rewriting takes only moments."""

_ARTICLE: Final = re.compile(r'<article id="([^"]*)"')
_PICTURE_NAME: Final = re.compile(r"\b[0-9a-f]{2}/([0-9a-f]{64})\b")


def remove_rows(runs: Path, exchanges: Iterable[int]) -> int:
    """Remove the rows of `exchanges` from all files of rows in `runs`, and return the number of removed rows.

    A row is also removed if its rejected answer comes from one of `exchanges`.

    If an interrupted run has such a row, its checkpoints are deleted too. So are sheets that show such a row
    and incomplete files that contain one; each deleted sheet or incomplete file counts as a row. Files are
    replaced atomically, and a second call does no harm.

    Raises:
        OSError: A file cannot be rewritten.
        filelock.Timeout: Another process holds the lock.
    """
    names = {row_name(each) for each in exchanges}
    if not names or not runs.is_dir():
        return 0
    with FileLock(runs / LOCK, timeout=LOCK_SECONDS):
        return _remove_rows(runs, names) + _remove_sheets(runs, names) + _remove_incomplete(runs, names)


def rename_pictures(runs: Path, names: Mapping[str, str]) -> None:
    """Replace picture names in every file of rows in the run directories under `runs`.

    `names` maps each picture's old SHA-256 to its new one. Each file is replaced atomically, and a second
    call changes nothing.

    Raises:
        OSError: A file cannot be rewritten.
    """

    def rename(found: re.Match[str]) -> str:
        name = names.get(found[1], found[1])
        return f"{name[:2]}/{name}"

    for file in _row_files(runs) if names else ():
        text = file.read_text(encoding="utf-8")
        renamed = _PICTURE_NAME.sub(rename, text)
        if renamed != text:
            write_text(file, renamed)


def _row_files(runs: Path) -> list[Path]:
    return sorted([*runs.glob("*/*.json"), *runs.glob("*/*.jsonl")])


def _remove_rows(runs: Path, names: set[str]) -> int:
    removed = 0
    for file in _row_files(runs):
        text = file.read_text(encoding="utf-8")
        if not _mentions(text, names):
            continue
        if file.suffix == ".jsonl":
            lines = text.split("\n")
            kept = [line for line in lines if not (line and _is_named(json.loads(line), names))]
            rest, count = "\n".join(kept), len(lines) - len(kept)
        else:
            rows = json.loads(text)
            if not isinstance(rows, list):
                continue
            left = [row for row in rows if not _is_named(row, names)]
            rest, count = json.dumps(left, ensure_ascii=False, indent=1) + "\n", len(rows) - len(left)
        if count:
            write_text(file, rest)
            remove_state(file.parent)
            removed += count
    return removed


def _remove_sheets(runs: Path, names: set[str]) -> int:
    pages = [
        page
        for page in sorted(runs.glob(f"*/{SHEET}"))
        if not names.isdisjoint(_ARTICLE.findall(page.read_text(encoding="utf-8")))
    ]
    for page in pages:
        for language in reversed(LANGUAGES):  # the page that is searched is deleted last
            for name in (PICTURE, SHEET):
                page.with_name(localized(name, language)).unlink(missing_ok=True)
    return len(pages)


def _remove_incomplete(runs: Path, names: set[str]) -> int:
    parts = [
        part
        for part in sorted(runs.glob(f"*/*{PART}"))
        # The file may end in the middle of a character.
        if _mentions(part.read_text(encoding="utf-8", errors="replace"), names)
    ]
    for part in parts:
        part.unlink()
    return len(parts)


def _mentions(text: str, names: Iterable[str]) -> bool:
    return any(f'"{name}"' in text for name in names)


def _is_named(row: Any, names: set[str]) -> bool:
    if not isinstance(row, dict):
        return False
    rejected = row.get("rejected")
    return row.get("id") in names or (isinstance(rejected, dict) and rejected.get("id") in names)
