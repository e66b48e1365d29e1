-- Updates as they were received, and the messages that answer them.
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY,
    lane TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    received REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'stored',
    error TEXT NOT NULL DEFAULT '',
    finished REAL
) STRICT;
CREATE TABLE replies (
    "update" INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    chat INTEGER NOT NULL,
    message INTEGER,
    final INTEGER NOT NULL DEFAULT 0,
    doubtful INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    PRIMARY KEY ("update", slot)
) STRICT;
CREATE INDEX inbox_open ON inbox(id) WHERE state IN ('stored', 'begun');
CREATE INDEX replies_doubtful ON replies(doubtful) WHERE doubtful > 0;
