"""Training: turn liked answers into LLaVA data, fine-tune with XTuner, and merge and evaluate a candidate."""
