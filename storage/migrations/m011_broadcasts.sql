-- The recipients of an admin's broadcasts, and the state of each.
CREATE TABLE broadcasts (
    "update" INTEGER NOT NULL,
    chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    state TEXT NOT NULL DEFAULT 'due'
        CHECK (state IN ('due', 'sending', 'told', 'unreachable', 'failed', 'doubtful', 'spared')),
    PRIMARY KEY ("update", chat)
) STRICT;
CREATE INDEX broadcasts_chat ON broadcasts(chat);
CREATE INDEX broadcasts_state ON broadcasts("update", state);
