"""The parameters for starting an engine, and the choice of a free port."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.engines.commands import Command
from inference.settings import InferenceSettings


@dataclass(frozen=True, slots=True)
class Launch:
    """The parameters for starting the engine of one model.

    `command` is None for an external server, whose URL is `endpoint`. `environment` is added to the
    environment of the child process.
    """

    model_id: str
    model_dir: Path
    command: Command | None
    log: Path
    settings: InferenceSettings
    endpoint: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
