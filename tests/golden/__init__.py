"""Outputs of the official InternVL code for comparison; README.md describes their origin."""
