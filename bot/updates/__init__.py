"""Incoming updates, which are received, stored, and then handled in order until each one is done."""
