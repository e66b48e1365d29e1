-- Answers that replace earlier ones, and the question that a message from the bot answers.
ALTER TABLE exchanges ADD COLUMN replaces INTEGER REFERENCES exchanges(id) ON DELETE SET NULL;
CREATE INDEX exchanges_replaces ON exchanges(replaces) WHERE replaces IS NOT NULL;
ALTER TABLE replies ADD COLUMN question INTEGER NOT NULL DEFAULT 0;
CREATE INDEX replies_question ON replies(chat, question) WHERE question <> 0;
CREATE INDEX replies_message ON replies(chat, message);
