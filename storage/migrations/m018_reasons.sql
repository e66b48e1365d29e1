-- The template and values of each reason as JSON, for translation; empty for a text without a template.
ALTER TABLE runs ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
ALTER TABLE models ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
