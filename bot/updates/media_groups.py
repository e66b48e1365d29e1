"""Updates of one media group become one turn.

Telegram sends the members of an album as separate updates with one `media_group_id` and no end mark. Knows which
stored updates belong together and when an album counts as complete; the inbox does the waiting. What was handled
together once is handled together again after a crash, however many members came late.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from storage.records import StoredUpdate

LARGEST: Final = 10
"""An album has 2 to 10 members (https://core.telegram.org/bots/api#sendmediagroup)."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An update in its lane. `arrived` is a time of the monotonic clock."""

    update: StoredUpdate
    raw: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> str | None:
        """The album this update belongs to, None for all other updates."""
        message = self.raw.get("message")
        group = message.get("media_group_id") if isinstance(message, dict) else None
        return None if group is None else str(group)


def members(first: Waiting, lane: Iterable[Waiting]) -> list[Waiting]:
    """The updates of `lane` that make one turn with `first`, in Telegram's order; `first` alone without an album.

    Attempts tell what a crash has interrupted: only what was begun together belongs to that turn.
    """
    if first.group is None:
        return [first]
    begun = first.update.attempts > 0
    found = [each for each in lane if each.group == first.group and (each.update.attempts > 0) is begun]
    return sorted(found, key=lambda each: each.update.id)[:LARGEST]


def seconds_missing(album: list[Waiting], quiet: float) -> float:
    """How long to wait for another member before the album counts as complete (0: it is)."""
    first = album[0]
    if first.group is None or first.update.attempts > 0 or len(album) == LARGEST:
        return 0.0
    return max(0.0, max(each.arrived for each in album) + quiet - time.monotonic())
