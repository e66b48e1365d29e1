"""Benchmarks of speed, memory and learning; benchmarks/README.md has the results."""
