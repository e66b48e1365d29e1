-- People who let the bot learn from their questions in chats where it is a guest, and Telegram's IDs of its messages there.
ALTER TABLE users ADD COLUMN teaches_as_guest INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replies ADD COLUMN inline TEXT;
