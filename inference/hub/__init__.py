"""Downloads of checkpoints from the Hugging Face hub and from ModelScope."""
