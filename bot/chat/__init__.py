"""The conversation: from a question to its streamed and recorded answer."""
