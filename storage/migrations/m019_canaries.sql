-- Trials of models alongside the live one; `after` is the newest exchange before the trial.
CREATE TABLE canaries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL REFERENCES models(id),
    live TEXT NOT NULL REFERENCES models(id),
    run INTEGER REFERENCES runs(id) ON DELETE SET NULL,
    share REAL NOT NULL,
    started REAL NOT NULL,
    after INTEGER NOT NULL,
    ended REAL,
    verdict TEXT CHECK (verdict IN ('promoted', 'rolled_back', 'stopped', 'void')),
    reason TEXT NOT NULL DEFAULT '',
    reason_parts TEXT NOT NULL DEFAULT '',
    CHECK ((ended IS NULL) = (verdict IS NULL))
) STRICT;
CREATE INDEX canaries_model ON canaries(model);
CREATE INDEX canaries_live ON canaries(live);
CREATE INDEX canaries_run ON canaries(run);
CREATE UNIQUE INDEX one_trial ON canaries(ended IS NULL) WHERE ended IS NULL;
CREATE UNIQUE INDEX one_canary ON models(state) WHERE state = 'canary';
