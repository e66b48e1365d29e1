"""Training: liked answers become LLaVA data, an XTuner run, and a merged and evaluated candidate model."""
