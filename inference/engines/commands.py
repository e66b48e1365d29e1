"""How each kind of engine is started: the kind for the settings, and the kind's command line.

Knows the workers' modules and flags. Starting them is left to launch.py and watching them to worker.py. A new kind
that runs as our child is one function here and one line in `_COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from inference.engines.lmdeploy.kv_budget import BLOCK_TOKENS
from inference.settings import TINY, InferenceSettings


class Kind(StrEnum):
    """What answers: a child process of one of two sorts, or a server that somebody else runs."""

    CPU = "cpu"
    LMDEPLOY = "lmdeploy"
    EXTERNAL = "external"


_CHAT_BLOCKS: Final = 60
"""KV blocks of a usual chat: one picture of 13 tiles and some text."""

Command = Callable[[str, Path, int, InferenceSettings], list[str]]
"""(model id, checkpoint directory, loopback port, settings) → the command line that serves the model there."""

_DRIVER: Final = Path("/dev/nvidiactl")
_CONCURRENCY: Final = {Kind.CPU: 4, Kind.LMDEPLOY: 64, Kind.EXTERNAL: 16}


def resolve(settings: InferenceSettings) -> Kind:
    """The kind that `settings.engine` means here.

    `auto` is external where endpoints are given; lmdeploy where it is installed, the machine has an NVIDIA driver and
    the model is not the tiny one; else cpu.
    """
    if settings.engine != "auto":
        return Kind(settings.engine)
    if settings.endpoints:
        return Kind.EXTERNAL
    return Kind.LMDEPLOY if settings.model != TINY and _DRIVER.exists() and find_spec("lmdeploy") else Kind.CPU


def concurrency(kind: Kind, settings: InferenceSettings, cache_tokens: int | None = None) -> int:
    """Return how many answers may be under way at once on one engine.

    For lmdeploy no more than it computes at once and holds in its KV cache: who waits here is told their place, who
    waits there is not. `cache_tokens` is what the running engine says of its cache; None before it has said so.
    """
    if settings.concurrency or kind is not Kind.LMDEPLOY:
        return settings.concurrency or _CONCURRENCY[kind]
    sizes = settings.lmdeploy
    blocks = sizes.blocks if cache_tokens is None else cache_tokens // BLOCK_TOKENS
    held = sizes.batch if blocks is None else blocks // _CHAT_BLOCKS
    return max(min(_CONCURRENCY[kind], sizes.batch, held), 1)


def command(kind: Kind) -> Command:
    """The function that words the command line of a kind that we start. Raises KeyError for the others."""
    return _COMMANDS[kind]


def _cpu(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    line = [
        *(settings.python or sys.executable, "-m", "inference.engines.cpu.server"),
        *("--model", str(model_dir), "--name", model_id, "--port", str(port)),
        # More than people can take: a question whether it is well, or a prompt to warm, never waits behind theirs.
        *("--slots", str(concurrency(Kind.CPU, settings) + 2)),
    ]
    if settings.threads is not None:
        line += ["--threads", str(settings.threads)]
    if settings.cache_megabytes is not None:
        line += ["--cache-megabytes", str(settings.cache_megabytes)]
    return line


def _lmdeploy(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    sizes = settings.lmdeploy
    given = {
        "--blocks": sizes.blocks,
        "--prefill-tokens": sizes.prefill_tokens,
        "--tile-threads": sizes.tile_threads,
        "--tiles": settings.tiles,
    }
    return [
        *(settings.python or sys.executable, "-m", "inference.engines.lmdeploy.server"),
        *("--model", str(model_dir), "--name", model_id, "--port", str(port)),
        *("--engines", str(settings.side_by_side)),
        *("--session-length", str(sizes.session_length), "--batch", str(sizes.batch)),
        *("--kv-bits", str(sizes.kv_bits), "--dtype", sizes.dtype, "--weights", sizes.weights),
        *("--tensor-parallel", str(sizes.tensor_parallel)),
        *("--tile-cache-megabytes", str(sizes.tile_cache_megabytes)),
        *(word for flag, value in given.items() if value is not None for word in (flag, str(value))),
    ]


_COMMANDS: dict[Kind, Command] = {Kind.CPU: _cpu, Kind.LMDEPLOY: _lmdeploy}
