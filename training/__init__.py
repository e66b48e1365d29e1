"""Learning: highly rated exchanges become LLaVA data, an XTuner run, a merged and evaluated candidate model."""
