"""The line and the comment of each key in a settings file.

The comments of the config.toml that ships with thumbtune describe the settings on the operator's page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).with_name("config.toml")
"""The file with every setting, its default and its description."""

_HEADER: Final = re.compile(r"\[+\s*([\w.-]+)\s*\]+")
_KEY: Final = re.compile(r"(# )?([\w.-]+)\s*=")


@dataclass(frozen=True, slots=True)
class KeyLine:
    """The line number of a key or table, counted from 1, and the comment above it as one paragraph."""

    number: int
    comment: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting's value comes from: an environment variable, or a file and a line number in it, 0 if unknown."""

    name: str
    line: int = 0


def key_lines(text: str) -> dict[str, KeyLine]:
    """Return the first line of each key and table by its dotted path.

    A key that is commented out, such as `# threads = 2`, is included unless it is also set. Lines inside
    multi-line strings are not recognized as such.
    """
    found: dict[str, KeyLine] = {}
    unset: dict[str, KeyLine] = {}
    section, comment = "", list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line.strip()):
            section = header[1]
            found.setdefault(section, KeyLine(number, ""))
            comment = []
        elif key := _KEY.match(line.strip()):
            path = f"{section}.{key[2]}" if section else key[2]
            (unset if key[1] else found).setdefault(path, KeyLine(number, " ".join(comment)))
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:].strip())
        else:
            comment = []
    return unset | found


@cache
def descriptions() -> Mapping[str, str]:
    """Return the description of each setting by its dotted path."""
    return {key: line.comment for key, line in key_lines(SHIPPED.read_text(encoding="utf-8")).items()}
