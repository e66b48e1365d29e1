"""The chat format: how a conversation becomes the text and the token ids that InternVL2 reads."""
