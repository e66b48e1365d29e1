"""Describe shares of right answers, and the gain of one model over another, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from training.evidence.facts import upper_bound
from training.evidence.proportions import wilson_interval

_TAIL: Final = 0.025
"""The error of each side of a 95 % interval."""


def share(right: Sequence[bool]) -> str:
    """Return the share of right answers as a percentage, with Wilson's interval."""
    low, high = wilson_interval(sum(right), len(right))
    return f"{sum(right) / len(right):.0%} ({low:.0%} to {high:.0%})"


def gain(before: Sequence[bool], after: Sequence[bool]) -> str:
    """Return the gain in percentage points, with Tango's interval for a difference of paired proportions."""
    number = len(before)
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    low, high = -upper_bound(number, lost, gained, _TAIL), upper_bound(number, gained, lost, _TAIL)
    return f"{100 * (gained - lost) / number:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"
