"""Serving and training on a Ray cluster: the processes that deploy and train there, and what runs on its nodes."""
