-- Whether everything that follows the end of a run has been done.
ALTER TABLE runs ADD COLUMN settled INTEGER NOT NULL DEFAULT 1;
