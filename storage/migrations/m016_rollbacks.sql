-- The mark of promotions that were rollbacks.
ALTER TABLE promotions ADD COLUMN back INTEGER NOT NULL DEFAULT 0;
