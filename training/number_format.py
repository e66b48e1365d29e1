"""Format times, sizes and fractions for display."""

from __future__ import annotations

from math import ceil


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number: int) -> str:
    """Return a number of bytes in MB or GB, with at least two significant digits from 1 MB upwards."""
    if number < 999.5e6:
        return f"{number / 1e6:.1f} MB" if number < 99.5e6 else f"{number / 1e6:.0f} MB"
    return f"{number / 1e9:.1f} GB"


def percent(share: float) -> str:
    """Return a fraction between 0 and 1 as a percentage."""
    return f"{100 * share:.1f} %"


def points(bound: float) -> str:
    """Return an upper bound rounded up to one decimal place."""
    return f"{ceil(10 * bound - 1e-9) / 10:.1f}"


def interval(centre: float, low: float, high: float, language: str = "en") -> str:
    """Return a fraction between 0 and 1 and its interval, as percentages, with the parentheses used in `language`."""
    share, limits = f"{100 * centre:.0f} %", f"{100 * low:.0f}–{100 * high:.0f} %"
    return f"{share}（{limits}）" if language == "zh" else f"{share} ({limits})"
