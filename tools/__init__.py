"""Tools for developers, not included in the distribution."""
