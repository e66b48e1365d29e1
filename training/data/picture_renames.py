"""Give pictures in the files of runs the names that they have now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from training.whole import write_whole

_NAME: Final = re.compile(r"\b[0-9a-f]{2}/([0-9a-f]{64})\b")


def rename_pictures(runs: Path, names: Mapping[str, str]) -> int:
    """Rewrite every list of rows below the folder `runs` in which a picture is called as in the keys of `names`.

    Each file is replaced as a whole; a second call changes nothing. Returns the number of files. Raises `OSError`.
    """

    def renamed(found: re.Match[str]) -> str:
        name = names.get(found[1], found[1])
        return f"{name[:2]}/{name}"

    changed = 0
    for file in sorted([*runs.glob("*/*.json"), *runs.glob("*/*.jsonl")]) if names else ():
        text = file.read_text(encoding="utf-8")
        rewritten = _NAME.sub(renamed, text)
        if rewritten != text:
            write_whole(file, rewritten)
            changed += 1
    return changed
