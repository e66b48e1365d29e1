"""Reviews: operators' decisions to keep, drop or edit a training example, or to undo such a decision (table `reviews`).

A new review does not overwrite earlier ones; only the latest review of an exchange counts. After an "undo",
the exchange counts as if it had never been reviewed. A dropped exchange is neither a training example
nor used for evaluation. If an exchange was edited, the model learns the edited text instead of the answer. A
run takes into account the reviews that existed when it was planned.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from storage.base import Queries, first, insert, transaction
from storage.database import Database
from storage.errors import StorageError
from storage.exchanges import exchange_with
from storage.learning_records import Review, ReviewDecision
from storage.translatable_reason import Reason

# With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
LATEST_REVIEWS = (
    "SELECT exchange, decision, text, reviewer, created, max(id) AS id FROM reviews"
    " WHERE (:reviews IS NULL OR id <= :reviews)"
    " AND (author IS NULL OR author NOT IN (SELECT value FROM json_each(:silent))) GROUP BY exchange"
)
"""The latest review of each exchange up to the review `:reviews`, leaving out edits of corrections whose authors are in
`:silent`."""

_AUTHOR = (
    "SELECT author FROM (SELECT author, 1 AS edit, id FROM reviews WHERE exchange = ?1 AND author IS NOT NULL"
    " UNION ALL SELECT author, 0, id FROM demonstrations WHERE exchange = ?1 AND confirmed_by IS NOT NULL)"
    " ORDER BY edit, id DESC LIMIT 1"
)


class Reviews(Queries):
    """The reviews in the ledger."""

    @transaction
    def add(self, database: Database, review: Review) -> int:
        """Add a review and return its ID.

        Raises:
            UnknownRecord: The exchange does not exist or was deleted.
            StorageError: The decision is EDIT, but the text is empty.
        """
        edit = review.decision is ReviewDecision.EDIT
        text = review.text.strip() if edit else ""
        if edit and not text:
            raise StorageError(
                Reason("An edited answer can't be empty; if nothing should be learned from it, drop it instead.")
            )
        now = review.created or self._clock()
        exchange_with(database, review.exchange)
        author = first(database, _AUTHOR, [review.exchange]) if edit else None
        row = asdict(replace(review, text=text, created=now)) | {"author": author and author["author"]}
        return insert(database, "reviews", row)

    async def newest(self) -> int:
        """Return the ID of the newest review, or 0 if there are no reviews."""
        return await self._number("SELECT coalesce(max(id), 0) FROM reviews")
