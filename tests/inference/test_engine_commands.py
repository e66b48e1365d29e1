"""Kinds of engines, their command lines and their settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference.engines import commands
from inference.engines.commands import Kind
from inference.engines.lmdeploy import server
from inference.settings import InferenceSettings, LmdeploySettings


def settings(**values: Any) -> InferenceSettings:
    return InferenceSettings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, Kind.CPU),
        ({"endpoint": "http://gpu:23333"}, Kind.EXTERNAL),
        ({"engine": "cpu"}, Kind.CPU),
        ({"engine": "external", "endpoint": "http://gpu:23333"}, Kind.EXTERNAL),
        ({"engine": "lmdeploy"}, Kind.LMDEPLOY),
    ],
)
def test_kind(values: dict[str, Any], kind: Kind) -> None:
    """The setting `auto` selects an external engine if an endpoint is set, and otherwise the CPU engine.

    Any other value selects the kind of engine that it names.
    """
    assert commands.resolve(settings(**values)) is kind


def test_cpu_command_line() -> None:
    """The CPU engine's command line contains an option for each setting that has a value."""
    line = commands.COMMANDS[Kind.CPU]
    assert line("m-1", Path("/models/m-1"), 4711, settings()) == [
        *(sys.executable, "-m", "inference.engines.cpu.server", "--model", "/models/m-1", "--name", "m-1"),
        *("--port", "4711", "--slots", "6"),
    ]
    chosen = settings(python="/other/python", threads=2, cache_megabytes=64)
    assert line("m-1", Path("/models/m-1"), 4711, chosen)[0] == "/other/python"
    assert line("m-1", Path("/models/m-1"), 4711, chosen)[-4:] == ["--threads", "2", "--cache-megabytes", "64"]


def test_lmdeploy_command_line() -> None:
    """The lmdeploy worker parses its command line back into the settings it was made from."""
    sizes = {"blocks": 900, "kv_bits": 8, "prefill_tokens": 4096, "tile_threads": 3, "weights": "awq", "batch": 9}
    line = commands.COMMANDS[Kind.LMDEPLOY]
    arguments = line(
        "m-1", Path("/models/m-1"), 4711, settings(engine="lmdeploy", tiles=6, swap="cold", lmdeploy=sizes)
    )
    assert arguments[:3] == [sys.executable, "-m", "inference.engines.lmdeploy.server"]
    parsed = server.parser().parse_args(arguments[3:])
    assert (parsed.model, parsed.name, parsed.port) == (Path("/models/m-1"), "m-1", 4711)
    assert (parsed.tiles, parsed.engines) == (6, 1)
    assert parsed.settings.model_dump(include=set(sizes)) == sizes
    plain = server.parser().parse_args(line("m", Path("/m"), 1, settings(engine="lmdeploy"))[3:])
    assert (plain.settings, plain.tiles, plain.engines) == (LmdeploySettings(), None, 2)


def test_concurrency() -> None:
    """Each kind of engine has its own default concurrency, which the `concurrency` setting overrides."""
    assert commands.concurrency(Kind.LMDEPLOY, settings()) > commands.concurrency(Kind.CPU, settings())
    assert commands.concurrency(Kind.CPU, settings(concurrency=7)) == 7
    assert commands.concurrency(Kind.LMDEPLOY, settings(lmdeploy={"batch": 8})) == 8
    assert commands.concurrency(Kind.LMDEPLOY, settings(lmdeploy={"blocks": 240})) == 4
    assert commands.concurrency(Kind.LMDEPLOY, settings(lmdeploy={"batch": 8}, concurrency=20)) == 20
    assert commands.concurrency(Kind.LMDEPLOY, settings(), 240 * 64) == 4
    assert commands.concurrency(Kind.LMDEPLOY, settings(), 16) == 1
    assert commands.concurrency(Kind.LMDEPLOY, settings(concurrency=20), 240 * 64) == 20


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"engine": "gpu"}, "engine"),
        ({"engin": "cpu"}, "engin"),
        ({"engine": "external"}, "endpoint"),
        ({"engine": "cpu", "endpoint": "http://gpu:1"}, "endpoint"),
        ({"endpoint": "gpu:1"}, "http://host:port"),
        ({"endpoints": ["http://a:1"]}, "endpoints is gone: set inference.endpoint"),
        ({"swap_command": ["./swap.sh"]}, "swap_command is gone.*ray"),
        ({"ray": {"url": "head"}}, "http://host:port"),
        ({"ray": {"replicas": {"min": 2}}}, "above max"),
        ({"engine": "ray", "gpus": [0]}, "replicas"),
        ({"gpus": [0, 0]}, "twice"),
        ({"gpus": [0, 1], "lmdeploy": {"tensor_parallel": 2}}, "tensor_parallel"),
        ({"gpus": [0], "endpoint": "http://a:1"}, "gpus"),
        ({"tiles": 0}, "tiles"),
        ({"token_timeout": 0}, "token_timeout"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_bad_settings(values: dict[str, Any], word: str) -> None:
    """An unknown setting or a bad value raises an error that names the setting."""
    with pytest.raises(ValidationError, match=word):
        settings(**values)


def test_the_api_key_is_not_shown() -> None:
    """The repr of the settings does not contain the server's API key."""
    assert "secret-key" not in repr(settings(api_key="secret-key"))


def test_the_deployment_imports_no_torch() -> None:
    """Importing the deployment module imports neither torch nor transformers."""
    code = "import sys, inference.serving.deployment; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
