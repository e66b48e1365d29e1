-- The top-k that an answer was sampled with; NULL for exchanges recorded earlier.
ALTER TABLE exchanges ADD COLUMN top_k INTEGER;
