-- Two models' answers to a user's question about a picture, for a blind comparison by operators.
-- `swapped` means that the page shows the answer of `second` first. `choice` is 1 or 2, or 0 if both are equally good.
CREATE TABLE comparisons (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    first TEXT NOT NULL,
    second TEXT NOT NULL,
    first_answer TEXT NOT NULL,
    second_answer TEXT NOT NULL,
    swapped INTEGER NOT NULL CHECK (swapped IN (0, 1)),
    choice INTEGER CHECK (choice IN (0, 1, 2)),
    reviewer TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    UNIQUE (exchange, first, second),
    CHECK (first < second)
) STRICT;
CREATE INDEX comparisons_models ON comparisons(first, second);
