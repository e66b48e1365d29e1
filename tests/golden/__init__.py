"""Outputs of the official code for comparison; README.md describes their origin."""
