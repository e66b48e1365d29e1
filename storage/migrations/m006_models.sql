-- Models, of which at most one is live, and every change of the live one.
CREATE TABLE models (
    id TEXT PRIMARY KEY NOT NULL,
    directory TEXT NOT NULL,
    state TEXT NOT NULL,
    run INTEGER REFERENCES runs(id) ON DELETE SET NULL,
    created REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    report TEXT NOT NULL DEFAULT '',
    manifest_hash TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models(id),
    previous TEXT REFERENCES models(id),
    "by" INTEGER,
    created REAL NOT NULL,
    done REAL,
    error TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX idx_promotions_model ON promotions(model);
CREATE INDEX idx_promotions_previous ON promotions(previous);
CREATE UNIQUE INDEX one_live_model ON models(state) WHERE state = 'live';
