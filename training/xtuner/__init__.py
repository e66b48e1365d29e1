"""The training worker: XTuner configured, made faster, and run over validated data."""
