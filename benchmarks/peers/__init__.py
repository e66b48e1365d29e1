"""Comparisons with other programs that serve or train the same model, on the same machine."""
