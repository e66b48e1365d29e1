"""The chat format: how a conversation becomes the text and the token IDs that InternVL2 reads."""
