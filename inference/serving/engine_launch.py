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

    `command` is None for an external server, whose URL is `endpoint`. If both are set, the command deploys an
    application on a cluster that is reached at `endpoint`. `environment` is added to the environment of
    the child process.
    """

    model_id: str
    model_dir: Path
    command: Command | None
    log: Path
    settings: InferenceSettings
    endpoint: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def deploys(self) -> bool:
        """Whether the command deploys an application, which consists of several engines on a cluster."""
        return self.command is not None and bool(self.endpoint)

    def url(self, port: int) -> str:
        """Return the engine's address; `port` is that of an engine on this machine."""
        if self.command is None:
            return self.endpoint
        if self.endpoint:
            return f"{self.endpoint}/{application_name(self.settings, self.model_id)}"
        return f"http://127.0.0.1:{port}"


def application_name(settings: InferenceSettings, model_id: str) -> str:
    """Return the name of a model's application on a Ray cluster, which is also its path on Ray Serve."""
    return f"{settings.ray.name}-{model_id}"


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
