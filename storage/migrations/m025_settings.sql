-- Changes to settings on the operator's page. The newest change to a key counts; `value` is JSON, or NULL to undo.
-- User IDs in limits.allowed and limits.blocked are kept when a user is erased: erasure must not lift a block.
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
