-- The estimated time left in the present state of a run.
ALTER TABLE runs ADD COLUMN seconds_left REAL;
