-- Pairs of answers to one question, of which a person may choose one; `rival` is an exchange as JSON.
CREATE TABLE duels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL UNIQUE REFERENCES exchanges(id) ON DELETE CASCADE,
    rival TEXT NOT NULL,
    rival_model TEXT NOT NULL,
    chooser INTEGER REFERENCES users(id) ON DELETE CASCADE,
    better INTEGER CHECK (better IN (0, 1)),
    created REAL NOT NULL,
    CHECK ((chooser IS NULL) = (better IS NULL))
) STRICT;
CREATE INDEX duels_chooser ON duels(chooser);
