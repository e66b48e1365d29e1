"""Incoming updates: received, stored, and handled in order until their effects have happened."""
