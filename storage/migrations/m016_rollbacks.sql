-- Whether a promotion was a rollback.
ALTER TABLE promotions ADD COLUMN back INTEGER NOT NULL DEFAULT 0;
