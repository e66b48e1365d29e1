-- Changes of settings on the operator's page. The newest change of a key counts; `value` is JSON, and NULL undoes.
-- User IDs in limits.allowed and limits.blocked stay when a person is erased: an erasure must not lift a block.
CREATE TABLE settings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    value TEXT CHECK (value IS NULL OR json_valid(value)),
    reviewer TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE INDEX settings_key ON settings(key, id);
CREATE TRIGGER settings_are_append_only BEFORE UPDATE ON settings
BEGIN
    SELECT RAISE(ABORT, 'settings are append-only: add another change instead');
END;
