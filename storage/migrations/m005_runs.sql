-- Retraining runs, of which at most one is active, and the exchanges that each was trained on.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL DEFAULT 'due',
    trigger TEXT NOT NULL,
    requested_by INTEGER,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0,
    loss REAL,
    samples INTEGER NOT NULL DEFAULT 0,
    held_out INTEGER NOT NULL DEFAULT 0,
    raters INTEGER NOT NULL DEFAULT 0,
    directory TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    model TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX one_active_run ON runs((1)) WHERE state IN ('due', 'training', 'merging', 'evaluating');
CREATE TABLE run_selections (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    split TEXT NOT NULL,
    PRIMARY KEY (run, exchange)
) STRICT;
CREATE INDEX idx_run_selections_exchange ON run_selections(exchange);
CREATE TRIGGER selections_are_frozen BEFORE UPDATE ON run_selections
BEGIN
    SELECT RAISE(ABORT, 'a selection is frozen: start another run instead');
END;
