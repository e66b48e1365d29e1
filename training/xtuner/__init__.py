"""The training worker, which configures XTuner, makes it faster, and runs it on validated data."""
