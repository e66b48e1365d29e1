-- People who opted out of training, the senders of pictures, and pending removals outside the ledger.
ALTER TABLE users ADD COLUMN opted_out INTEGER NOT NULL DEFAULT 0;
CREATE TABLE picture_senders (
    sha256 TEXT NOT NULL REFERENCES pictures(sha256) ON DELETE CASCADE,
    sender INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created REAL NOT NULL,
    PRIMARY KEY (sha256, sender)
) STRICT;
CREATE INDEX idx_picture_senders_sender ON picture_senders(sender);
INSERT INTO picture_senders(sha256, sender, created)
    SELECT sha256, asker, max(created) FROM exchange_pictures JOIN exchanges ON exchanges.id = exchange
     GROUP BY sha256, asker;
CREATE TABLE removals (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
