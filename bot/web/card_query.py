"""Parsing of the review page's card filter from a query string."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from bot.i18n import later
from storage.learning_records import ReviewDecision
from storage.review_cards import CardFilter

Value = TypeVar("Value")

DECISIONS: Final = {
    ReviewDecision.KEEP: later("kept"),
    ReviewDecision.DROP: later("dropped"),
    ReviewDecision.EDIT: later("edited"),
    ReviewDecision.UNDO: later("undone"),
}
UNREVIEWED: Final = "none"
"""The value of the decision filter that selects exchanges without a decision."""

THUMB_NAMES: Final = {"up": 1, "down": -1}
TEXT_CHARACTERS: Final = 200
LARGEST: Final = 2**63 - 1
"""The largest number that SQLite stores."""


def card_filter(query: Mapping[str, str]) -> CardFilter:
    """Return the filter that a query describes, ignoring invalid values. Dates are days in UTC."""
    decision = query.get("decision", "")
    return CardFilter(
        thumb=THUMB_NAMES.get(query.get("thumb", ""), 0),
        model=query.get("model", ""),
        chat=number(query.get("chat", "")),
        since=_valid(_day, query.get("since", ""), 0.0),
        until=_valid(lambda text: _day(text, after=1), query.get("until", ""), 0.0),
        text=query.get("text", "").strip()[:TEXT_CHARACTERS],
        decision=decision if decision in DECISIONS and decision != ReviewDecision.UNDO else "",
        unreviewed=decision == UNREVIEWED,
    )


def number(text: str) -> int:
    """Return an ID, or 0 if `text` is not one."""
    value = _valid(int, text[:20], 0)
    return value if abs(value) <= LARGEST else 0


def _valid(parse: Callable[[str], Value], text: str, otherwise: Value) -> Value:
    with suppress(ValueError, OverflowError):
        return parse(text)
    return otherwise


def _day(text: str, *, after: int = 0) -> float:
    return (datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=after)).timestamp()
