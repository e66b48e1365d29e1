"""Downloads of checkpoints from the Hugging Face Hub and from ModelScope."""
