-- The template and the values of each reason as JSON, for its translation; empty for a text without them.
ALTER TABLE runs ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
ALTER TABLE models ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
