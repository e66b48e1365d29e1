"""InternVL2: configuration, model, tiling, tokenizer and checkpoints. Importing this package imports no torch."""
