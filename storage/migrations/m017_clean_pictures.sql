-- States and former names of pictures, files that crashed a decoder, and one-time tasks after an upgrade.
ALTER TABLE pictures ADD COLUMN state TEXT NOT NULL DEFAULT 'raw'
    CHECK (state IN ('raw', 'clean', 'quarantined'));
CREATE INDEX pictures_raw ON pictures(sha256) WHERE state = 'raw';
CREATE INDEX pictures_quarantined ON pictures(sha256) WHERE state = 'quarantined';
ALTER TABLE exchange_pictures ADD COLUMN former TEXT;
CREATE INDEX exchange_pictures_former ON exchange_pictures(former) WHERE former IS NOT NULL;
CREATE TABLE decoder_deaths (
    file TEXT NOT NULL PRIMARY KEY,
    deaths INTEGER NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE chores (name TEXT NOT NULL PRIMARY KEY, done REAL NOT NULL) STRICT;
