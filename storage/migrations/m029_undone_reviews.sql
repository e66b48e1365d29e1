-- Decisions that operators take back ('undo').
-- A CHECK cannot be altered: https://www.sqlite.org/lang_altertable.html
ALTER TABLE reviews RENAME TO former_reviews;
CREATE TABLE reviews (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    decision TEXT NOT NULL CHECK (decision IN ('keep', 'drop', 'edit', 'undo')),
    text TEXT NOT NULL DEFAULT '',
    author INTEGER REFERENCES users(id) ON DELETE CASCADE,
    reviewer TEXT NOT NULL,
    created REAL NOT NULL,
    CHECK ((decision = 'edit') = (text <> ''))
) STRICT;
-- Runs refer to IDs of reviews, so the ID of a deleted review must not be used again.
INSERT INTO sqlite_sequence(name, seq) SELECT 'reviews', seq FROM sqlite_sequence WHERE name = 'former_reviews';
INSERT INTO reviews(id, exchange, decision, text, author, reviewer, created)
    SELECT id, exchange, decision, text, author, reviewer, created FROM former_reviews;
DROP TABLE former_reviews;
CREATE INDEX reviews_exchange ON reviews(exchange, id);
CREATE INDEX reviews_author ON reviews(author) WHERE author IS NOT NULL;
CREATE TRIGGER reviews_are_append_only BEFORE UPDATE ON reviews
BEGIN
    SELECT RAISE(ABORT, 'reviews are append-only: add another one instead');
END;
