-- The mark of models without a directory that can be merged again from their adapter.
ALTER TABLE models ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
