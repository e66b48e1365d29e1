"""xtuner."""
