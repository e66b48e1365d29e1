"""One InternVL2: configuration, model, tiles, tokenizer and checkpoints. Importing this package imports no torch."""
