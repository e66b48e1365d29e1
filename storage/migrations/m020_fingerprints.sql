-- The hash of a run's inputs; empty for runs of earlier versions.
ALTER TABLE runs ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
