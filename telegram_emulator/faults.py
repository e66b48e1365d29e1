"""Trouble on purpose, for tests: what networks and Telegram's front servers do to a bot now and then.

Knows how a call can fail; `server` carries it out. Trouble with the delivery of updates is in `updates`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    BAD_GATEWAY = "bad_gateway"  # 502 with Telegram's JSON
    HTML_PAGE = "html_page"  # 502 with a proxy's HTML page
    FLOOD = "flood"  # 429 with retry_after, although no limit was exceeded
    RESET_BEFORE = "reset_before"  # the connection breaks, nothing was done
    RESET_AFTER = "reset_after"  # the connection breaks, but the call was carried out
    CUT_OFF = "cut_off"  # the JSON ends in the middle, but the call was carried out
    UNKNOWN = "unknown"  # 404, as for a method that an older server does not know
    DELAY = "delay"  # the answer comes late
    REFUSED = "refused"  # 400 with words of Telegram's that nothing in this world brings about


@dataclass(slots=True)
class Fault:
    """The next `count` calls of `methods` (lower case; None: all but getUpdates) in `chat` (None: any) go wrong.

    `seconds` is the delay, or the `retry_after` of a flood. `words` are a refusal's, `moved_to` the chat that it names
    as the new one.
    """

    kind: FaultKind
    count: int = 1
    methods: frozenset[str] | None = None
    chat: int | None = None
    seconds: float = 1.0
    skip: int = 0  # so many fitting calls pass unharmed first
    words: str = ""
    moved_to: int | None = None

    def fits(self, method: str, chat: int | None) -> bool:
        """Whether it may strike this call."""
        if self.chat is not None and self.chat != chat:
            return False
        return method != "getupdates" if self.methods is None else method in self.methods


@dataclass(slots=True)
class Faults:
    """The faults still to strike, in the order they were planned; one call suffers at most one."""

    planned: list[Fault] = field(default_factory=list)
    struck: int = 0

    def plan(
        self,
        kind: str,
        count: int = 1,
        *,
        methods: Iterable[str] | None = None,
        chat: int | None = None,
        seconds: float = 1.0,
        skip: int = 0,
        words: str = "",
        moved_to: int | None = None,
    ) -> None:
        """Let the next `count` fitting calls go wrong, after `skip` that do not. ValueError for an unknown kind."""
        names = None if methods is None else frozenset(name.lower() for name in methods)
        self.planned.append(Fault(FaultKind(kind), count, names, chat, seconds, skip, words, moved_to))

    def clear(self) -> None:
        """No more trouble."""
        self.planned.clear()

    def strike(self, method: str, chat: int | None) -> Fault | None:
        """The fault that this call suffers, if any; it is used up by it."""
        for fault in self.planned:
            if not fault.fits(method, chat):
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
