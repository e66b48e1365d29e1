-- The forum topic of a reply, which in a private chat may differ from that of the question.
ALTER TABLE replies ADD COLUMN topic INTEGER;
