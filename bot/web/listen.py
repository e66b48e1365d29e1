"""Explain what to do if the bot cannot listen on a port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bot.config import ConfigError


@contextmanager
def listening(host: str, port: int, cure: str) -> Iterator[None]:
    """Turn an error from listening on the port into a ConfigError that says how to fix it."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"Nothing can listen on {host}:{port} ({why}): {cure}") from error
