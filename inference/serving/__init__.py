"""Serve models from engine processes or external servers: queueing, restarts, swaps and routing between replicas."""
