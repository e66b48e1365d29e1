"""Model serving by engines and external servers: queueing, restarts, swaps and routing between replicas."""
