-- The top-k that an answer was sampled with; NULL for exchanges recorded before.
ALTER TABLE exchanges ADD COLUMN top_k INTEGER;
