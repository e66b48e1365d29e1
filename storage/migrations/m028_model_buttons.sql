-- Messages with buttons about a model, which are useful as long as the model stays in `state`.
CREATE TABLE model_buttons (
    chat INTEGER NOT NULL,
    message INTEGER NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (chat, message)
) STRICT, WITHOUT ROWID;
