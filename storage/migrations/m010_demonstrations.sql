-- Retracted votes (0), reasons for votes, and better answers that people suggest.
-- A CHECK cannot be altered: https://www.sqlite.org/lang_altertable.html
DROP VIEW ratings;
DROP TRIGGER feedback_is_append_only;
ALTER TABLE feedback RENAME TO former_feedback;
CREATE TABLE feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    rater INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
    reason TEXT NOT NULL DEFAULT '',
    "update" INTEGER NOT NULL UNIQUE,
    created REAL NOT NULL
) STRICT;
INSERT INTO feedback(id, exchange, rater, value, "update", created)
    SELECT id, exchange, rater, value, "update", created FROM former_feedback;
DROP TABLE former_feedback;
CREATE INDEX feedback_exchange ON feedback(exchange, rater, id);
CREATE INDEX feedback_rater ON feedback(rater);
CREATE TRIGGER feedback_is_append_only BEFORE UPDATE ON feedback
BEGIN
    SELECT RAISE(ABORT, 'feedback is append-only: add another vote instead');
END;
CREATE VIEW ratings AS
    SELECT * FROM (
        SELECT exchange, rater, value, reason, "update", created, max(id) AS feedback
          FROM feedback GROUP BY exchange, rater)
     WHERE value <> 0;
CREATE TABLE demonstrations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    author INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    "update" INTEGER NOT NULL UNIQUE,
    created REAL NOT NULL,
    confirmed_by INTEGER REFERENCES users(id) ON DELETE SET NULL
) STRICT;
CREATE INDEX demonstrations_exchange ON demonstrations(exchange);
CREATE INDEX demonstrations_author ON demonstrations(author);
CREATE INDEX demonstrations_confirmed_by ON demonstrations(confirmed_by);
