"""Numbers of the official code that the tests hold ours to. README.md says where they come from."""
