"""Media groups (albums): their updates are handled together.

Telegram sends the members of an album as separate updates with one `media_group_id` and no end mark. Members that
were handled together before a crash are handled together again, even if more members have arrived since.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from storage.chat_records import StoredUpdate

MAX_MEMBERS: Final = 10
"""The maximum size of an album, which has 2 to 10 members (https://core.telegram.org/bots/api#sendmediagroup)."""


@dataclass(frozen=True, slots=True)
class QueuedUpdate:
    """An update in its lane, with its row and its JSON. `arrived` is a time of the monotonic clock."""

    stored: StoredUpdate
    raw: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> str | None:
        """The id of its media group, or None if it is in none."""
        message = self.raw.get("message")
        group = message.get("media_group_id") if isinstance(message, dict) else None
        return None if group is None else str(group)


def members(first: QueuedUpdate, lane: Iterable[QueuedUpdate]) -> list[QueuedUpdate]:
    """Return the updates of `lane` to handle together with `first`, in Telegram's order.

    An update that was attempted before a crash is handled together only with others that were.
    """
    if first.group is None:
        return [first]
    attempted = first.stored.attempts > 0
    found = [each for each in lane if each.group == first.group and (each.stored.attempts > 0) is attempted]
    return sorted(found, key=lambda each: each.stored.id)[:MAX_MEMBERS]


def seconds_until_complete(group: list[QueuedUpdate], quiet: float) -> float:
    """Return how long to wait for more members. A group is complete after `quiet` seconds without a new one."""
    first = group[0]
    if first.group is None or first.stored.attempts > 0 or len(group) == MAX_MEMBERS:
        return 0.0
    return max(0.0, max(each.arrived for each in group) + quiet - time.monotonic())
