-- Chats with a command menu of their own.
CREATE TABLE menus (
    chat INTEGER NOT NULL,
    language TEXT NOT NULL,
    PRIMARY KEY (chat, language)
) STRICT;
