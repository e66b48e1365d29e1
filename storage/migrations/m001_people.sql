-- Users, chats and the sessions (conversations) between them.
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL DEFAULT '',
    client_language TEXT,
    language TEXT,
    created REAL NOT NULL
) STRICT;
CREATE TABLE chats (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL DEFAULT 'private',
    title TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL
) STRICT;
-- AUTOINCREMENT: an id must not be reused after its owner was erased.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    user INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    topic INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    closed REAL
) STRICT;
CREATE UNIQUE INDEX one_open_session ON sessions(chat, user, topic) WHERE closed IS NULL;
CREATE INDEX sessions_user ON sessions(user);
