-- Votes, which are never changed and are deleted only with their user, and a view of each rater's latest vote.
CREATE TABLE feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    rater INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    value INTEGER NOT NULL CHECK (value IN (-1, 1)),
    "update" INTEGER NOT NULL UNIQUE,
    created REAL NOT NULL
) STRICT;
CREATE INDEX feedback_exchange ON feedback(exchange, rater, id);
CREATE INDEX feedback_rater ON feedback(rater);
CREATE TRIGGER feedback_is_append_only BEFORE UPDATE ON feedback
BEGIN
    SELECT RAISE(ABORT, 'feedback is append-only: add another vote instead');
END;
-- With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
CREATE VIEW ratings AS
    SELECT exchange, rater, value, "update", created, max(id) AS feedback FROM feedback GROUP BY exchange, rater;
