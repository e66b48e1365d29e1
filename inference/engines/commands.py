"""The kinds of engines: which kind the settings select, and each kind's concurrency and command line.

To add a kind of engine that the bot starts, add one function to this module and one entry to `COMMANDS`.
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
    """A kind of engine: a child process (CPU or lmdeploy), an external server, or an application on a Ray cluster."""

    CPU = "cpu"
    LMDEPLOY = "lmdeploy"
    EXTERNAL = "external"
    RAY = "ray"


_CHAT_BLOCKS: Final = 60
"""The number of KV blocks of a typical chat: one picture of 13 tiles and some text."""

Command = Callable[[str, Path, int, InferenceSettings], list[str]]
"""A function (model ID, checkpoint directory, loopback port, settings) that returns an engine's command line."""

_DRIVER: Final = Path("/dev/nvidiactl")
_CONCURRENCY: Final = {Kind.CPU: 4, Kind.LMDEPLOY: 64, Kind.EXTERNAL: 16}


def resolve(settings: InferenceSettings) -> Kind:
    """Return the kind of engine that the settings select.

    The setting `auto` selects an external server if an endpoint is set; lmdeploy if it is installed, the
    machine has an NVIDIA driver and the model is not "tiny"; and otherwise the CPU engine.
    """
    if settings.engine != "auto":
        return Kind(settings.engine)
    if settings.endpoint:
        return Kind.EXTERNAL
    return Kind.LMDEPLOY if settings.model != TINY and _DRIVER.exists() and find_spec("lmdeploy") else Kind.CPU


def on_nodes(settings: InferenceSettings) -> Kind:
    """Return the kind of engine that runs on the nodes of a Ray cluster."""
    return Kind.LMDEPLOY if settings.ray.num_gpus else Kind.CPU


def concurrency(kind: Kind, settings: InferenceSettings, cache_tokens: int | None = None) -> int:
    """Return the number of answers that may be in flight at once on one engine, or on all engines of a cluster.

    By default, lmdeploy is given no more questions at once than its batch and its KV cache can hold, because
    a question in the bot's queue has a known position, but a question waiting inside the engine does not.

    Args:
        kind: The kind of engine.
        settings: The settings.
        cache_tokens: The size of the KV cache in tokens, or None until the running engine has reported it.
    """
    if kind is Kind.RAY:
        return concurrency(on_nodes(settings), settings) * settings.ray.replicas.max
    if settings.concurrency or kind is not Kind.LMDEPLOY:
        return settings.concurrency or _CONCURRENCY[kind]
    sizes = settings.lmdeploy
    blocks = sizes.blocks if cache_tokens is None else cache_tokens // BLOCK_TOKENS
    chats = sizes.batch if blocks is None else blocks // _CHAT_BLOCKS
    return max(min(_CONCURRENCY[kind], sizes.batch, chats), 1)


def _cpu(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    line = [
        *(settings.python or sys.executable, "-m", "inference.engines.cpu.server"),
        *("--model", str(model_dir), "--name", model_id, "--port", str(port)),
        # More than the bot uses for questions, so that a health probe or a warm-up prompt never waits behind them.
        *("--slots", str(concurrency(Kind.CPU, settings) + 2)),
    ]
    if settings.threads is not None:
        line += ["--threads", str(settings.threads)]
    if settings.cache_megabytes is not None:
        line += ["--cache-megabytes", str(settings.cache_megabytes)]
    return line


def _lmdeploy(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    return [
        *(settings.python or sys.executable, "-m", "inference.engines.lmdeploy.server"),
        *("--model", str(model_dir), "--name", model_id, "--port", str(port)),
        *("--engines", str(settings.side_by_side)),
        *(() if settings.tiles is None else ("--tiles", str(settings.tiles))),
        *("--settings", settings.lmdeploy.model_dump_json(exclude_defaults=True)),
    ]


def _ray(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
    return [
        *(settings.python or sys.executable, "-m", "cluster.deploy_application"),
        *("--model", str(model_dir), "--name", model_id),
        *("--settings", settings.model_dump_json(exclude_defaults=True, exclude={"api_key", "model", "python"})),
    ]


COMMANDS: Final[dict[Kind, Command]] = {Kind.CPU: _cpu, Kind.LMDEPLOY: _lmdeploy, Kind.RAY: _ray}
"""The functions that build the command lines of the engines that the bot starts."""

PRELOADED: Final = {
    Kind.CPU: ("inference.engines.cpu.engine", "inference.engines.cpu.http_api"),
    Kind.LMDEPLOY: ("inference.engines.lmdeploy.patches", "lmdeploy.serve.openai.api_server"),
}
"""The modules that `WarmPython` preloads for each kind of engine on this machine."""
