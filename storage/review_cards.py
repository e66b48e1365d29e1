"""Cards: exchanges with everything that an operator needs to review them, selected by a filter.

Cards are ordered from the newest exchange to the oldest. The ID of the last card of a page is the cursor
of the next page, so new exchanges do not shift the pages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from storage.base import Queries, every, find, first, query
from storage.chat_records import Chat, Exchange, PictureState, StoredPicture
from storage.database import Database
from storage.exchanges import SELECT_EXCHANGES, exchange_of
from storage.learning_records import Review, ReviewDecision
from storage.pictures import picture_of

_NET = (
    "(SELECT coalesce(sum(value), 0) FROM"
    " (SELECT value, max(id) FROM feedback WHERE exchange = exchanges.id GROUP BY rater))"
)
"""The thumbs up minus the thumbs down of an exchange."""

_DECISION = (
    "nullif((SELECT decision FROM reviews WHERE exchange = exchanges.id"
    " AND id <= coalesce((SELECT reviews FROM runs WHERE id = :run), 9e18) ORDER BY id DESC LIMIT 1), 'undo')"
)
"""The decision on an exchange, or NULL if there is none or it was undone."""

_CORRECTION = (
    "(SELECT text FROM demonstrations WHERE exchange = exchanges.id AND confirmed_by IS NOT NULL"
    " ORDER BY id DESC LIMIT 1)"
)
_CONDITIONS = {
    "model": "model = :model",
    "chat": "chat = :chat",
    "since": "created >= :since",
    "until": "created < :until",
    "text": "(question LIKE :text ESCAPE '\\' OR answer LIKE :text ESCAPE '\\')",
    "decision": f"coalesce({_DECISION}, '') = :decision",
    "unreviewed": f"{_DECISION} IS NULL",
    "thumb": f"sign({_NET}) = :thumb",
    "run": "id IN (SELECT exchange FROM run_selections WHERE run = :run AND"
    " CASE WHEN :judged THEN judged OR split = 'held_out' ELSE split <> 'held_out' END)",
    "person": "id IN (SELECT id FROM exchanges WHERE asker = :person"
    " UNION SELECT exchange FROM feedback WHERE rater = :person"
    " UNION SELECT exchange FROM demonstrations WHERE author = :person)",
}
_RATED = (
    "(EXISTS (SELECT 1 FROM feedback WHERE exchange = exchanges.id)"
    " OR EXISTS (SELECT 1 FROM demonstrations WHERE exchange = exchanges.id)"
    f" OR {_DECISION} IS NOT NULL)"
)
_LIKED = (
    f"CASE {_DECISION} WHEN 'drop' THEN 0 WHEN 'edit' THEN 1 ELSE"
    f" {_CORRECTION} IS NOT NULL OR (finish = 'stop' AND trim(answer) <> '' AND {_NET} > :threshold) END"
)
_BEFORE = "session = :session AND id < :id AND coalesce(replaces, id) < :position"
_SUBJECT = (
    f"(SELECT max(id) FROM exchanges WHERE (id = :id OR {_BEFORE})"
    " AND EXISTS (SELECT 1 FROM exchange_pictures WHERE exchange = exchanges.id))"
)
"""The newest exchange whose question has pictures, up to and including a given exchange."""

_PICTURES = (
    "SELECT pictures.* FROM exchange_pictures JOIN pictures USING (sha256)"
    f" WHERE state = :state AND exchange = {_SUBJECT} ORDER BY position"
)
_STOOD = (
    f"{SELECT_EXCHANGES} WHERE id IN (SELECT max(id) FROM exchanges WHERE {_BEFORE}"
    f" AND coalesce(replaces, id) >= (SELECT coalesce(replaces, id) FROM exchanges WHERE id = {_SUBJECT})"
    " GROUP BY coalesce(replaces, id)) ORDER BY coalesce(replaces, id) DESC LIMIT :limit"
)
"""The earlier exchanges about the same pictures, as they were when an exchange's question was answered, newest first.

By default (`chat.history_pictures = 1`), these are the earlier turns that the model saw.
"""

_HISTORY = 10
"""How many of the preceding exchanges a card shows."""


@dataclass(frozen=True, slots=True)
class CardFilter:
    """A filter that selects the cards to show. A field with its default value does not restrict the selection.

    Attributes:
        thumb: 1 for exchanges with more 👍 than 👎, -1 for the opposite.
        since: The earliest time of an exchange, in UTC seconds since the epoch.
        until: The time before which an exchange must have taken place, in UTC seconds since the epoch.
        text: Text to find in the question or the answer, ignoring the case of ASCII letters.
        decision: The decision of the latest review.
        unreviewed: Whether to select only exchanges without a decision or with an undone decision.
        run: The ID of the run that learned from the exchanges.
        judged: Whether to select the exchanges used to evaluate the run instead of those that it learned from.
        person: The ID of a person who asked, voted on or corrected the exchanges.
    """

    thumb: int = 0
    model: str = ""
    chat: int = 0
    since: float = 0.0
    until: float = 0.0
    text: str = ""
    decision: str = ""
    unreviewed: bool = False
    run: int = 0
    judged: bool = False
    person: int = 0

    @property
    def where(self) -> str:
        """The SQL condition. Without a run or a person, it requires a vote, a correction or a review."""
        chosen = [sql for name, sql in _CONDITIONS.items() if getattr(self, name)]
        return " AND ".join(chosen if self.run or self.person else [*chosen, _RATED])

    @property
    def values(self) -> dict[str, Any]:
        """The values of the condition's parameters."""
        escaped = self.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return {**asdict(self), "text": f"%{escaped}%"}


@dataclass(frozen=True, slots=True)
class CardVote:
    """The latest vote of a person on an exchange; `reason` is one of the bot's keywords for reasons, or empty."""

    rater: int
    name: str
    value: int
    reason: str


@dataclass(frozen=True, slots=True)
class Card:
    """An exchange with everything that an operator needs to review it.

    Attributes:
        asker: The name of the person who asked.
        history: The last exchanges about the same pictures before the question, oldest first, as they were when it
            was answered.
        pictures: The pictures that the answer is about, without those that may not be shown.
        correction: The newest confirmed correction; empty if there is none.
        reviews: All reviews, oldest first; on the page of a run, those that the run took into account.
    """

    exchange: Exchange
    chat: Chat
    asker: str
    history: tuple[Exchange, ...]
    pictures: tuple[StoredPicture, ...]
    votes: tuple[CardVote, ...]
    correction: str
    reviews: tuple[Review, ...]

    @property
    def decision(self) -> ReviewDecision | None:
        """The decision that counts; None if there is none or it was undone."""
        latest = self.reviews[-1].decision if self.reviews else None
        return None if latest is ReviewDecision.UNDO else latest

    @property
    def edited(self) -> str:
        """The text of the operator's edit; empty if the latest review is not an edit."""
        return self.reviews[-1].text if self.reviews else ""

    @property
    def taught(self) -> str:
        """The text to learn: the edit, the correction, or the answer."""
        return self.edited or self.correction or self.exchange.answer


class ReviewCards(Queries):
    """Queries for cards, and for the number of exchanges that a filter selects."""

    @query
    def page(self, database: Database, filter: CardFilter, before: int | None, size: int) -> tuple[list[Card], bool]:
        """Return at most `size` cards, newest first, and whether there are more.

        `before` is the ID of the last card of the previous page, or None for the first page.
        """
        rows = every(
            database,
            f"{SELECT_EXCHANGES} WHERE (:before IS NULL OR id < :before) AND {filter.where}"
            " ORDER BY id DESC LIMIT :size",
            {**filter.values, "before": before, "size": size + 1},
        )
        exchanges = [exchange_of(row) for row in rows[:size]]
        return [_card(database, each, filter.run) for each in exchanges], len(rows) > size

    async def get(self, exchange: Exchange) -> Card:
        """Return the card of an exchange."""
        return await self._read(lambda database: _card(database, exchange, 0))

    async def totals(self, filter: CardFilter, threshold: int) -> tuple[int, int]:
        """Return how many exchanges the filter selects, and how many of them are lessons (training examples).

        A lesson is an exchange that was not dropped and that is corrected, edited, or complete with thumbs up
        minus thumbs down above `threshold`. A run may still leave out some lessons, such as repeated ones.
        """
        (row,) = await self._every(
            f"SELECT count(*) AS shown, coalesce(sum({_LIKED}), 0) AS liked FROM exchanges WHERE {filter.where}",
            {**filter.values, "threshold": threshold},
        )
        return row["shown"], row["liked"]

    async def kept(self, filter: CardFilter) -> list[int]:
        """Return the IDs of the exchanges that the filter selects, except those that an operator has dropped."""
        sql = f"SELECT id FROM exchanges WHERE {filter.where} AND coalesce({_DECISION}, '') <> '{ReviewDecision.DROP}'"
        return await self._column(sql, filter.values)

    async def models(self) -> list[str]:
        """Return the IDs of the models that have answered."""
        return await self._column("SELECT DISTINCT model FROM exchanges ORDER BY model")

    async def groups(self) -> list[Chat]:
        """Return the groups in which the bot has answered, by title."""
        sql = (
            "SELECT id, kind, title FROM chats WHERE id < 0"
            " AND EXISTS (SELECT 1 FROM exchanges WHERE chat = chats.id) ORDER BY title, id"
        )
        return await self._list(lambda row: Chat(**row), sql)


def _card(database: Database, exchange: Exchange, run: int) -> Card:
    here = {"session": exchange.session, "id": exchange.id, "position": exchange.position}
    stood = every(database, _STOOD, {**here, "limit": _HISTORY})
    pictures = every(database, _PICTURES, {**here, "state": PictureState.CLEAN})
    votes = every(
        database,
        "SELECT rater, coalesce(name, '') AS name, value, reason FROM ratings LEFT JOIN users ON users.id = rater"
        " WHERE exchange = ? ORDER BY feedback",
        [exchange.id],
    )
    correction = first(database, f"SELECT {_CORRECTION} AS text FROM exchanges WHERE id = ?", [exchange.id])
    reviews = every(
        database,
        "SELECT exchange, decision, reviewer, text, created, id FROM reviews WHERE exchange = :exchange"
        " AND id <= coalesce((SELECT reviews FROM runs WHERE id = :run), 9e18) ORDER BY id",
        {"exchange": exchange.id, "run": run},
    )
    chat = find(lambda row: Chat(**row), database, "SELECT id, kind, title FROM chats WHERE id = ?", [exchange.chat])
    asker = first(database, "SELECT name FROM users WHERE id = ?", [exchange.asker])
    return Card(
        exchange=exchange,
        chat=chat or Chat(exchange.chat),
        asker=asker["name"] if asker else "",
        history=tuple(exchange_of(row) for row in reversed(stood)),
        pictures=tuple(picture_of(row) for row in pictures),
        votes=tuple(CardVote(**row) for row in votes),
        correction=(correction and correction["text"]) or "",
        reviews=tuple(Review(**{**dict(row), "decision": ReviewDecision(row["decision"])}) for row in reviews),
    )
