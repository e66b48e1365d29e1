-- Who set each model's state, whether admins were notified of a promotion, and the text of a message with buttons.
ALTER TABLE models ADD COLUMN changed_by TEXT NOT NULL DEFAULT '';
ALTER TABLE promotions ADD COLUMN announced INTEGER NOT NULL DEFAULT 1;
ALTER TABLE model_buttons ADD COLUMN text TEXT NOT NULL DEFAULT '';
ALTER TABLE model_buttons ADD COLUMN caption INTEGER NOT NULL DEFAULT 0;
