"""Votes (table `feedback`), and the rated exchanges and preferences that training learns from.

A new vote does not overwrite earlier ones; only each rater's latest vote on an exchange counts.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby, permutations

from storage.base import Queries, column, every, query, transaction
from storage.blocklist import BLOCKED
from storage.chat_records import Exchange
from storage.database import Database
from storage.errors import StorageError
from storage.exchanges import SELECT_EXCHANGES, exchange_of, exchange_with
from storage.guests import UNLEARNED
from storage.learning_records import EQUAL_TRUST, Newcomers, Preference, RatedExchange, Rating, ReviewDecision, Trust
from storage.people import ensure_user
from storage.reviews import LATEST_REVIEWS

_VOTES = (
    "SELECT exchange, sum(value > 0) AS ups, sum(value < 0) AS downs, json_group_array(rater) AS raters,"
    " json_group_array(rater) FILTER (WHERE value > 0) AS liked_by"
    " FROM ratings WHERE rater NOT IN (SELECT value FROM json_each(:unheard)) GROUP BY exchange"
)

_RIVALS = (
    "SELECT exchange, chooser, json_extract(rival, '$.answer') AS answer, json_extract(rival, '$.finish') AS finish"
    " FROM duels WHERE better = 1"
)

# With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
_DEMONSTRATIONS = (
    "SELECT exchange, author, confirmed_by, text, max(id) FROM demonstrations"
    " WHERE author NOT IN (SELECT value FROM json_each(:unheard))"
    " AND (confirmed_by <> author AND confirmed_by NOT IN (SELECT value FROM json_each(:doubted))"
    " OR confirmed_by IN (SELECT value FROM json_each(:admins))) GROUP BY exchange"
)


class Votes(Queries):
    """Queries for votes, rated exchanges and preferences."""

    @transaction
    def cast(self, database: Database, rating: Rating) -> bool:
        """Add a vote and return True, or return False if the vote's Telegram update was already counted.

        Raises:
            UnknownRecord: The exchange does not exist or was deleted.
            StorageError: The value is not 1, -1 or 0.
        """
        if rating.value not in (1, -1, 0):
            raise StorageError(f"A rating is 1, -1 or 0 (retracted), not {rating.value}.")
        now = rating.created or self._clock()
        exchange_with(database, rating.exchange)
        ensure_user(database, rating.rater, now)
        cursor = database.execute(
            'INSERT INTO feedback(exchange, rater, value, reason, "update", created) VALUES (?, ?, ?, ?, ?, ?)'
            ' ON CONFLICT("update") DO NOTHING',
            (rating.exchange, rating.rater, rating.value, rating.reason, rating.update, now),
        )
        return cursor.rowcount == 1

    async def by_update(self, update: int) -> Rating | None:
        """Return the vote cast by the Telegram update `update`, or None if there is none."""
        return await self._find(
            lambda row: Rating(**row),
            'SELECT exchange, rater, value, reason, "update", created FROM feedback WHERE "update" = ?',
            [update],
        )

    async def newest(self) -> int:
        """Return the ID of the newest vote, or 0 if there are no votes."""
        return await self._number("SELECT coalesce(max(id), 0) FROM feedback")

    async def recent_in_groups(self, seconds: float) -> list[Exchange]:
        """Return exchanges outside private chats with a vote at most `seconds` older than the newest vote overall."""
        return await self._list(
            exchange_of,
            f"{SELECT_EXCHANGES} WHERE chat <= 0 AND id IN (SELECT exchange FROM feedback"
            " WHERE created >= (SELECT max(created) FROM feedback) - ?) ORDER BY id",
            [seconds],
        )

    async def tally(self, exchange: int) -> tuple[int, int]:
        """Return how many users currently like and how many dislike the answer of an exchange."""
        (row,) = await self._every(
            "SELECT coalesce(sum(value > 0), 0) AS ups, coalesce(sum(value < 0), 0) AS downs"
            " FROM (SELECT value, max(id) FROM feedback WHERE exchange = ? GROUP BY rater)",
            [exchange],
        )
        return row["ups"], row["downs"]

    async def latest(self, exchange: int, rater: int) -> int | None:
        """Return the latest vote of `rater` on `exchange`, 1 or -1, or None if there is none or it was retracted."""
        sql = "SELECT value FROM feedback WHERE exchange = ? AND rater = ? ORDER BY id DESC LIMIT 1"
        return await self._find(lambda row: row["value"] or None, sql, (exchange, rater))

    async def latest_reason(self, exchange: int, rater: int) -> str:
        """Return the reason for the latest vote of `rater` on `exchange`; empty if there is none."""
        sql = "SELECT reason FROM feedback WHERE exchange = ? AND rater = ? ORDER BY id DESC LIMIT 1"
        return await self._find(lambda row: str(row["reason"]), sql, (exchange, rater)) or ""

    async def rated_exchanges(self, trust: Trust = EQUAL_TRUST, reviews: int | None = None) -> list[RatedExchange]:
        """Return every exchange with votes, a correction or an edit, ordered by ID, with its conversation.

        The reviews up to the one with the ID `reviews` count, or all of them if it is None. The result omits:

        - exchanges that an operator dropped;
        - votes and corrections of users who have opted out, are blocked, or are new;
        - exchanges whose question came from a user who has opted out or is blocked, exchanges in blocked groups,
          exchanges in chats where the bot is a guest unless the user who asked allows it to learn from them, exchanges
          that show a quarantined picture, and everything after them in their conversations;
        - corrections that only their author has confirmed, unless the author is an admin.
        """
        judged = await self._read(lambda database: _judged(database, trust, reviews, self._clock()))
        rated = [each.better or each.said for each in judged if each.better or each.said.raters]
        return sorted(rated, key=lambda each: each.exchange.id)

    async def preferences(self, trust: Trust = EQUAL_TRUST, reviews: int | None = None) -> list[Preference]:
        """Return pairs of answers to the same prompt, with one answer preferred to the other.

        An answer is preferred if it has better votes, won a duel, or is a correction or an edit. The result omits the
        votes, exchanges and corrections that `rated_exchanges` omits, answers that were cut off before their
        end, and pairs of identical answers.
        """
        return await self._read(lambda database: _preferences(database, trust, reviews, self._clock()))

    async def shown(self, model: str, raters: Iterable[int]) -> tuple[int, int]:
        """Return how many answers `model` gave to questions from `raters`, and how many of those are liked."""
        (row,) = await self._every(
            "SELECT count(*) AS answers, coalesce(sum(id IN (SELECT exchange FROM ratings GROUP BY exchange"
            " HAVING sum(value) > 0)), 0) AS liked"
            " FROM exchanges WHERE model = ? AND asker IN (SELECT value FROM json_each(?))",
            [model, json.dumps(sorted(raters))],
        )
        return row["answers"], row["liked"]

    @query
    def newcomers(self, database: Database, trust: Trust) -> Newcomers | None:
        """Return the new users who have cast votes that do not count yet, or None if there are none."""
        new = _newcomers(database, trust, self._clock()) - _silent(database, trust)
        voted = (
            "SELECT count(*) AS people, min(created) AS first FROM users"
            " WHERE id IN (SELECT value FROM json_each(?)) AND id IN (SELECT rater FROM ratings)"
        )
        (row,) = every(database, voted, [json.dumps(sorted(new))])
        wait = trust.newcomer_seconds
        return Newcomers(row["people"], row["first"] + wait, wait) if row["people"] else None


@dataclass(frozen=True, slots=True)
class _Judged:
    """An exchange with the votes on the model's answer and, if there is one, its corrected or edited version."""

    said: RatedExchange
    better: RatedExchange | None


def _silent(database: Database, trust: Trust) -> frozenset[int]:
    """Return the IDs of the users and groups whose votes and exchanges must not be used for training."""
    return _blocked(database, trust).union(column(database, "SELECT id FROM users WHERE opted_out"))


def _blocked(database: Database, trust: Trust) -> frozenset[int]:
    """Return the IDs of the users and groups that the settings or an operator have blocked."""
    return trust.blocked.union(column(database, BLOCKED))


def _newcomers(database: Database, trust: Trust, now: float) -> set[int]:
    if not trust.newcomer_seconds:
        return set()
    seen = column(database, "SELECT id FROM users WHERE created > ?", [now - trust.newcomer_seconds])
    return set(seen) - trust.admins


def _judged(database: Database, trust: Trust, reviews: int | None, now: float) -> list[_Judged]:
    """Return the usable exchanges of every conversation with votes, corrections or edits, sorted by session and ID."""
    silent, new, blocked = _silent(database, trust), _newcomers(database, trust, now), _blocked(database, trust)
    people = {
        "unheard": json.dumps(sorted(silent | new)),
        "doubted": json.dumps(sorted(blocked | new)),
        "admins": json.dumps(sorted(trust.admins)),
    }
    votes = {row["exchange"]: row for row in every(database, _VOTES, people)}
    rows = every(
        database,
        f"{SELECT_EXCHANGES} WHERE session IN (SELECT session FROM exchanges WHERE id IN"
        " (SELECT exchange FROM feedback UNION SELECT exchange FROM demonstrations"
        " UNION SELECT exchange FROM reviews WHERE decision = 'edit')) ORDER BY session, id",
    )
    latest = every(database, LATEST_REVIEWS, {"silent": json.dumps(sorted(silent)), "reviews": reviews})
    reviewed = {row["exchange"]: (row["decision"], row["text"]) for row in latest}
    shown = {row["exchange"]: row for row in every(database, _DEMONSTRATIONS, people)}
    quarantined = set(column(database, "SELECT sha256 FROM pictures WHERE state = 'quarantined'"))
    unlearned = set(column(database, UNLEARNED))
    found = []
    for _, talk in groupby((exchange_of(row) for row in rows), key=lambda exchange: exchange.session):
        stood: dict[int, Exchange] = {}
        for exchange in talk:
            shows_quarantined = not quarantined.isdisjoint(exchange.pictures)
            if exchange.asker in silent or exchange.chat in blocked or exchange.id in unlearned or shows_quarantined:
                break
            vote = votes.get(exchange.id)
            before = tuple(stood[place] for place in sorted(stood) if place < exchange.position)
            ups, downs = (vote["ups"], vote["downs"]) if vote else (0, 0)
            raters, liked_by = (
                tuple(sorted(json.loads(vote[name]))) if vote else () for name in ("raters", "liked_by")
            )
            said = RatedExchange(exchange, ups, downs, raters, liked_by, before)
            stood[exchange.position] = exchange
            decision, text = reviewed.get(exchange.id, (ReviewDecision.KEEP, ""))
            if decision != ReviewDecision.DROP:
                edited = _edited(said, text) if decision == ReviewDecision.EDIT else None
                found.append(_Judged(said, edited or _corrected(said, shown.get(exchange.id))))
    return found


def _corrected(said: RatedExchange, shown: sqlite3.Row | None) -> RatedExchange | None:
    """Return the exchange with the correction as its answer, or None if there is no correction."""
    if shown is None:
        return None
    raters = tuple(sorted({shown["author"], shown["confirmed_by"]}))
    return RatedExchange(_with_answer(said, shown["text"]), 1, 0, raters, raters, said.history, corrected=True)


def _edited(said: RatedExchange, text: str) -> RatedExchange:
    """Return the exchange with the text of an operator's edit as its answer."""
    likes = said.liked_by
    return RatedExchange(_with_answer(said, text), len(likes) or 1, 0, likes, likes, said.history, corrected=True)


def _with_answer(said: RatedExchange, text: str) -> Exchange:
    """Return the exchange with the answer `text`.

    The token count is set to the number of characters in `text`, which is nearly always an upper bound.
    """
    return replace(said.exchange, answer=text, finish="stop", completion_tokens=len(text))


def _preferences(database: Database, trust: Trust, reviews: int | None, now: float) -> list[Preference]:
    found: list[Preference] = []

    def compare(chosen: RatedExchange, rejected: Exchange) -> None:
        whole = chosen.exchange.finish == rejected.finish == "stop"
        if whole and chosen.exchange.answer != rejected.answer:
            found.append(Preference(chosen, rejected.answer, rejected.id))

    answers: dict[tuple[int, str], list[RatedExchange]] = defaultdict(list)
    rivals = {row["exchange"]: row for row in every(database, _RIVALS)}
    for each in _judged(database, trust, reviews, now):
        exchange = each.said.exchange
        if (row := rivals.get(exchange.id)) and row["chooser"] in each.said.liked_by:
            # A rival has no exchange of its own, so the pair shares one, as a correction and its original do.
            compare(each.said, replace(exchange, answer=row["answer"], finish=row["finish"]))
        answers[exchange.position, exchange.prompt_hash].append(each.said)
        if each.better is not None:
            compare(each.better, exchange)
    for same_prompt in answers.values():
        for chosen, rejected in permutations(same_prompt, 2):
            if chosen.ups - chosen.downs > rejected.ups - rejected.downs:
                compare(chosen, rejected.exchange)
    return sorted(found, key=lambda preference: preference.chosen.exchange.id)
