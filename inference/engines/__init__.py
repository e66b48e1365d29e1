"""Engines, the servers that run a model: their command lines and the HTTP client that talks to them."""
