-- Whether a model without a directory can be merged again from its adapter.
ALTER TABLE models ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
