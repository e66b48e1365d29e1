"""Whether a model is broken: its answers are empty or loop."""

from __future__ import annotations

import re
from typing import Final

_REPEATED: Final = re.compile(r"(.{4,60}?)\1{3,}|(.{2,3}?)\2{6,}", re.DOTALL)


def broken(answer: str) -> bool:
    """Return whether an answer is empty or loops: it repeats one phrase four times, or a very short one seven times."""
    if not re.search(r"\w", answer):
        return True
    # Laughter repeats single characters, and rulers of tables repeat punctuation; loops repeat words.
    return any(re.search(r"\w", found[0]) for found in _REPEATED.finditer(answer))
