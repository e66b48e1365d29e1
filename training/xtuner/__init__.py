"""The training worker: XTuner, configured, made faster, and run on validated data."""
