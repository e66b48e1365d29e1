"""Faults that tests inject to imitate failures of networks and of Telegram's front-end servers.

The `emulator` module applies the faults. Faults in the delivery of updates are implemented in
`update_queue`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """The way in which a Bot API call fails."""

    BAD_GATEWAY = "bad_gateway"  # 502 with Telegram's JSON
    HTML_PAGE = "html_page"  # 502 with a proxy's HTML page
    FLOOD = "flood"  # 429 with retry_after, although no limit was exceeded
    RESET_BEFORE = "reset_before"  # the connection breaks before anything is done
    RESET_AFTER = "reset_after"  # the connection breaks after the call has been carried out
    CUT_OFF = "cut_off"  # the call is carried out, but the JSON ends in the middle
    DELAY = "delay"  # the response is delayed
    REFUSED = "refused"  # 400 with one of Telegram's errors that the emulator does not otherwise produce


@dataclass(slots=True)
class Fault:
    """A planned failure of Bot API calls.

    Attributes:
        kind: The way in which a call fails.
        count: The number of calls that will fail.
        methods: The names of the affected methods in lower case, or None for all methods except getUpdates.
        chat: The ID of the affected chat, or None for any chat.
        seconds: The length of a delay, or the `retry_after` of a flood error.
        skip: The number of matching calls to let through before the first failure.
        words: The error description of a refused call.
        moved_to: The ID of the new chat, if any, that the error of a refused call reports.
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
        """Return whether the fault applies to a call to `method` in `chat`."""
        if self.chat is not None and self.chat != chat:
            return False
        return method != "getupdates" if self.methods is None else method in self.methods


@dataclass(slots=True)
class Faults:
    """The planned faults, in order; at most one applies to each call."""

    planned: list[Fault] = field(default_factory=list)
    struck: int = 0

    def plan(self, kind: str, count: int = 1, *, methods: Iterable[str] | None = None, **details: Any) -> None:
        """Plan a fault; `details` are the remaining fields of `Fault`.

        Raises:
            ValueError: `kind` is not a `FaultKind`.
        """
        names = None if methods is None else frozenset(name.lower() for name in methods)
        self.planned.append(Fault(FaultKind(kind), count, names, **details))

    def clear(self) -> None:
        """Discard all planned faults."""
        self.planned.clear()

    def strike(self, method: str, chat: int | None) -> Fault | None:
        """Return the fault that applies to a call to `method` in `chat`, if any, and count one use of it."""
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
