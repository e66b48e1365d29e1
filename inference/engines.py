"""How each kind of engine is started: the kind for the settings, and the kind's command line.

Knows the workers' modules and flags. Starting and watching them is left to process.py and worker.py. A new kind
that runs as our child is one function here and one line in `_COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from inference.messages import EngineUnavailable
from inference.settings import InferenceSettings


class Kind(StrEnum):
    """What answers: a child process of one of two sorts, or a server that somebody else runs."""

    CPU = "cpu"
    LMDEPLOY = "lmdeploy"
    EXTERNAL = "external"


Command = Callable[[str, Path, int, InferenceSettings], list[str]]
"""(model id, checkpoint directory, loopback port, settings) → the command line that serves the model there."""

_CONCURRENCY = {Kind.CPU: 4, Kind.LMDEPLOY: 64, Kind.EXTERNAL: 16}


def resolve(settings: InferenceSettings) -> Kind:
    """The kind that `settings.engine` means here; `auto` is external where endpoints are given, else cpu."""
    if settings.engine == "auto":
        return Kind.EXTERNAL if settings.endpoints else Kind.CPU
    return Kind(settings.engine)


def concurrency(kind: Kind, settings: InferenceSettings) -> int:
    """How many answers may be under way at once."""
    return settings.concurrency or _CONCURRENCY[kind]


def command(kind: Kind) -> Command:
    """The function that words the kind's command line. Raises EngineUnavailable where there is none."""
    try:
        return _COMMANDS[kind]
    except KeyError:
        raise EngineUnavailable(
            f'inference.engine = "{kind}" cannot be started by this version: set it to "cpu", or start your own '
            'server and set it to "external" with its address in inference.endpoints.'
        ) from None


def _cpu(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    line = [
        *(settings.python or sys.executable, "-m", "inference.cpu_server"),
        *("--model", str(model_dir), "--name", model_id, "--host", "127.0.0.1", "--port", str(port)),
        # One more than people can take, so that a question whether it is well never waits behind theirs.
        *("--slots", str(concurrency(Kind.CPU, settings) + 1)),
    ]
    if settings.threads is not None:
        line += ["--threads", str(settings.threads)]
    if settings.cache_megabytes is not None:
        line += ["--cache-megabytes", str(settings.cache_megabytes)]
    return line


_COMMANDS: dict[Kind, Command] = {Kind.CPU: _cpu}
