"""Injected faults, for tests: calls that fail as networks and Telegram's front servers make them fail.

`emulator` carries them out. Faults in the delivery of updates are in `update_queue`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """The way in which a call fails."""

    BAD_GATEWAY = "bad_gateway"  # 502 with Telegram's JSON
    HTML_PAGE = "html_page"  # 502 with a proxy's HTML page
    FLOOD = "flood"  # 429 with retry_after, although no limit was exceeded
    RESET_BEFORE = "reset_before"  # the connection breaks before anything is done
    RESET_AFTER = "reset_after"  # the connection breaks, but the call was carried out
    CUT_OFF = "cut_off"  # the JSON ends in the middle, but the call was carried out
    DELAY = "delay"  # the answer comes late
    REFUSED = "refused"  # 400 with a description of Telegram's that the emulator would not give otherwise


@dataclass(slots=True)
class Fault:
    """A failure of the next `count` calls of `methods` in `chat`.

    `methods` are in lower case; None means all but getUpdates. A `chat` of None means any. The first `skip` matching
    calls pass. `seconds` is the delay, or the `retry_after` of a flood. `words` is the description of a refusal, and
    `moved_to` is the chat that it names as the new one.
    """

    kind: FaultKind
    count: int = 1
    methods: frozenset[str] | None = None
    chat: int | None = None
    seconds: float = 1.0
    skip: int = 0
    words: str = ""
    moved_to: int | None = None

    def matches(self, method: str, chat: int | None) -> bool:
        """Return whether the fault applies to this call."""
        if self.chat is not None and self.chat != chat:
            return False
        return method != "getupdates" if self.methods is None else method in self.methods


@dataclass(slots=True)
class Faults:
    """The planned faults, in order. At most one applies to a call."""

    planned: list[Fault] = field(default_factory=list)
    struck: int = 0

    def plan(self, kind: str, count: int = 1, *, methods: Iterable[str] | None = None, **details: Any) -> None:
        """Plan a `Fault`. Raises ValueError for an unknown kind."""
        names = None if methods is None else frozenset(name.lower() for name in methods)
        self.planned.append(Fault(FaultKind(kind), count, names, **details))

    def clear(self) -> None:
        """Drop all planned faults."""
        self.planned.clear()

    def strike(self, method: str, chat: int | None) -> Fault | None:
        """Return the fault that applies to this call, if any, and count it as used."""
        for fault in self.planned:
            if not fault.matches(method, chat):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.count -= 1
            if fault.count <= 0:
                self.planned.remove(fault)
            self.struck += 1
            return fault
        return None
