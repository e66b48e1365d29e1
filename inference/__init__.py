"""Inference: InternVL2, the engine processes that serve it, and the deployment that keeps them running."""
