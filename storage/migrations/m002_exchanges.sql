-- Pictures, questions with their answers, and a view of these as turns.
CREATE TABLE pictures (
    sha256 TEXT PRIMARY KEY NOT NULL,
    media_type TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    size INTEGER NOT NULL,
    phash TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
-- AUTOINCREMENT: a rating button of an erased exchange must never count for a later one.
CREATE TABLE exchanges (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    asker INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    "update" INTEGER NOT NULL UNIQUE,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    model TEXT NOT NULL,
    system TEXT NOT NULL,
    prompt_hash TEXT NOT NULL,
    temperature REAL NOT NULL,
    top_p REAL NOT NULL,
    max_new_tokens INTEGER NOT NULL,
    seed INTEGER,
    finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    encoded_tiles INTEGER NOT NULL,
    first_token_seconds REAL NOT NULL,
    seconds REAL NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE INDEX exchanges_session ON exchanges(session, id);
CREATE INDEX exchanges_asker ON exchanges(asker);
CREATE TABLE exchange_pictures (
    exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    sha256 TEXT NOT NULL REFERENCES pictures(sha256) ON DELETE RESTRICT,
    PRIMARY KEY (exchange, position)
) STRICT;
CREATE INDEX idx_exchange_pictures_sha256 ON exchange_pictures(sha256);
CREATE VIEW turns AS
    SELECT id AS exchange, session, chat, 0 AS position, 'user' AS role, asker AS user, NULL AS model,
           question AS text, (SELECT count(*) FROM exchange_pictures WHERE exchange = exchanges.id) AS pictures,
           created
      FROM exchanges
    UNION ALL
    SELECT id, session, chat, 1, 'assistant', NULL, model, answer, 0, created FROM exchanges;
