"""Numbers as people read them: times, sizes, shares."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """A time as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number: int) -> str:
    """So many bytes, as megabytes or gigabytes with two significant digits at least."""
    if number < 999.5e6:
        return f"{number / 1e6:.1f} MB" if number < 99.5e6 else f"{number / 1e6:.0f} MB"
    return f"{number / 1e9:.1f} GB"


def percent(share: float) -> str:
    """A share between 0 and 1 as a percentage."""
    return f"{100 * share:.1f} %"
