-- The mark of runs whose end has had all its consequences.
ALTER TABLE runs ADD COLUMN settled INTEGER NOT NULL DEFAULT 1;
