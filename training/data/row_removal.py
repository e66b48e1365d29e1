"""What was withdrawn leaves the files of runs: the rows of forgotten exchanges, wherever a run has written them, and
every sheet that shows one of them, whole files or what a crash has left of one.

One process at a time rewrites the files of a folder of runs: of two that had read the same file, the later one would
write the other's rows back. Knows how a row is named and what a run's files look like, and not why a row has to go. A
run whose files have lost rows can be trained again from its configuration, without them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from training.data.llava import row_name
from training.gate.sheet_words import LANGUAGES, localised
from training.run_folder import PICTURE, SHEET
from training.whole import UNFINISHED, write_whole
from training.xtuner.resume import remove_state

LOCK: Final = "withdrawal.lock"
LOCK_SECONDS: Final = 30.0
"""How long to wait for another process; rewriting takes moments."""

_ARTICLE: Final = re.compile(r'<article id="([^"]*)"')


def withdraw(runs: Path, exchanges: Iterable[int]) -> int:
    """Rewrite every list of rows below the folder `runs` without those of `exchanges`; return how many rows went.

    What such a run has learned so far, the checkpoints of one that was cut short, goes with them. A sheet is removed
    whole, and counts as one row; so is a file that was not written to its end. Each file is replaced as a whole; doing
    it again does no harm. Raises `OSError`, also where another process keeps the lock.
    """
    names = {row_name(each) for each in exchanges}
    if not names or not runs.is_dir():
        return 0
    with FileLock(runs / LOCK, timeout=LOCK_SECONDS):
        return _withdraw(runs, names)


def _withdraw(runs: Path, names: set[str]) -> int:
    quoted = [f'"{name}"' for name in names]
    gone = 0
    for file in sorted([*runs.glob("*/*.json"), *runs.glob("*/*.jsonl")]):
        text = file.read_text(encoding="utf-8")
        if not any(name in text for name in quoted):
            continue
        if file.suffix == ".jsonl":
            lines = text.split("\n")
            kept = [line for line in lines if not (line and _named(json.loads(line), names))]
            rest, lost = "\n".join(kept), len(lines) - len(kept)
        else:
            rows = json.loads(text)
            if not isinstance(rows, list):
                continue
            left = [row for row in rows if not _named(row, names)]
            rest, lost = json.dumps(left, ensure_ascii=False, indent=1) + "\n", len(rows) - len(left)
        if lost:
            write_whole(file, rest)
            remove_state(file.parent)
            gone += lost
    for page in sorted(runs.glob(f"*/{SHEET}")):
        if not names.isdisjoint(_ARTICLE.findall(page.read_text(encoding="utf-8"))):
            for language in reversed(LANGUAGES):  # the page that is looked at goes last
                for name in (PICTURE, SHEET):
                    page.with_name(localised(name, language)).unlink(missing_ok=True)
            gone += 1
    for part in sorted(runs.glob(f"*/*{UNFINISHED}")):
        text = part.read_text(encoding="utf-8", errors="replace")  # it may end within a character
        if any(name in text for name in quoted):
            part.unlink()
            gone += 1
    return gone


def _named(row: Any, names: set[str]) -> bool:
    return isinstance(row, dict) and row.get("id") in names
