"""Incoming updates: receiving and storing them, then handling them in order until each one is done."""
