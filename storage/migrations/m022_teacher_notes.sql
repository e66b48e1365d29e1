-- People who want a note when a model that learned from their votes goes live, and those who have received one.
ALTER TABLE users ADD COLUMN wants_notes INTEGER NOT NULL DEFAULT 0;
CREATE TABLE teacher_notes (
    model TEXT NOT NULL REFERENCES models(id),
    person INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created REAL NOT NULL,
    PRIMARY KEY (model, person)
) STRICT;
CREATE INDEX teacher_notes_person ON teacher_notes(person);
