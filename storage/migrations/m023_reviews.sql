-- Operators' decisions on lessons, blocked people, and the reviews, limits and judging answers of each run.
-- `author` wrote the correction that an edit is based on; the edit is deleted along with its author.
CREATE TABLE reviews (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    decision TEXT NOT NULL CHECK (decision IN ('keep', 'drop', 'edit')),
    text TEXT NOT NULL DEFAULT '',
    author INTEGER REFERENCES users(id) ON DELETE CASCADE,
    reviewer TEXT NOT NULL,
    created REAL NOT NULL,
    CHECK ((decision = 'edit') = (text <> ''))
) STRICT;
CREATE INDEX reviews_exchange ON reviews(exchange, id);
CREATE INDEX reviews_author ON reviews(author) WHERE author IS NOT NULL;
CREATE TRIGGER reviews_are_append_only BEFORE UPDATE ON reviews
BEGIN
    SELECT RAISE(ABORT, 'reviews are append-only: add another one instead');
END;
-- There is no reference to users, because erasing a user must not lift a block.
CREATE TABLE blocks (
    person INTEGER PRIMARY KEY,
    reviewer TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
-- `reviews` is the newest review that a run takes into account; a limited run learns from `run_limits` only.
ALTER TABLE runs ADD COLUMN reviews INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN limited INTEGER NOT NULL DEFAULT 0;
CREATE TABLE run_limits (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    PRIMARY KEY (run, exchange)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_limits_exchange ON run_limits(exchange);
-- An answer may be used to judge one model of the run and to train a later one. Runs of earlier versions recorded only
-- the judging answers that are not trained on, by their split.
ALTER TABLE run_selections ADD COLUMN judged INTEGER NOT NULL DEFAULT 0;
CREATE INDEX exchanges_chat ON exchanges(chat);
CREATE INDEX exchanges_model ON exchanges(model);
CREATE INDEX exchanges_created ON exchanges(created);
