"""The operator's command that swaps an external server: how it is filled in, run and believed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference.messages import EngineUnavailable
from inference.settings import InferenceSettings
from inference.switching import command_line, switch
from inference.worker import Launch, free_port
from tests.children import alive, until


def launch(folder: Path, *command: str, endpoint: str = "http://gpu-1:8000", **more: Any) -> Launch:
    settings = InferenceSettings.model_validate({"endpoints": [endpoint], "swap_command": command} | more)
    return Launch("run-7", Path("/models/run 7"), None, folder / "swap.log", settings, endpoint)


def test_switching_fills_in_the_command(tmp_path: Path) -> None:
    """Each placeholder is replaced inside its own argument; no shell sees it; other braces stay."""
    line = ("ssh", "{host}", "swap --port={port} '{model_dir}'", "{model}", "{endpoint}", "{}", "${HOME}!")
    with pytest.raises(ValidationError, match=r"HOME.*is not known; there are endpoint, host"):
        launch(tmp_path, *line)
    assert command_line(launch(tmp_path, *line[:-1])) == [
        *("ssh", "gpu-1", "swap --port=8000 '/models/run 7'", "run-7", "http://gpu-1:8000", "{}")
    ]
    assert command_line(launch(tmp_path, "{host}:{port}", endpoint="https://[::1]")) == ["::1:443"]


def test_switching_is_for_endpoints() -> None:
    """A command without servers to swap is a mistake that is named."""
    with pytest.raises(ValidationError, match="swap_command is for endpoints"):
        InferenceSettings(swap_command=("true",))


async def test_switching_without_a_program(tmp_path: Path) -> None:
    """A program that is not there is an error that names the setting."""
    new = launch(tmp_path, str(tmp_path / "swap.sh"))
    with pytest.raises(EngineUnavailable, match=r"inference\.swap_command .*could not be started"):
        await switch(new, new)


async def test_switching_tells_the_end_of_what_was_written(tmp_path: Path) -> None:
    """A command that fails is an error with its last lines."""
    code = "import sys; print(*range(99), sep='\\n'); sys.exit('no such host')"
    new = launch(tmp_path, sys.executable, "-c", code)
    with pytest.raises(EngineUnavailable, match=r"exit code 1(?s:.)*\n98\nno such host$") as raised:
        await switch(new, new)
    assert "\n50\n" not in str(raised.value)


async def test_switching_server_does_not_come_back(tmp_path: Path) -> None:
    """A server that is not there after the command is an error after the start's patience."""
    new = launch(tmp_path, "true", endpoint=f"http://127.0.0.1:{free_port()}", start_timeout=0.5)
    with pytest.raises(EngineUnavailable, match=r"does not answer 0\.5 s after"):
        await switch(new, new)


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_switching_ends_the_command_with_all_it_started(tmp_path: Path, how: str) -> None:
    """A command that is given up leaves no process behind."""
    script = f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait"
    new = launch(tmp_path, "sh", "-c", script, swap_command_timeout=60 if how == "cancelled" else 0.5)
    switching = asyncio.create_task(switch(new, new))
    await until((tmp_path / "self").exists)
    if how == "cancelled":
        switching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await switching
    else:
        with pytest.raises(EngineUnavailable, match=r"did not end within 0\.5 s"):
            await switching
    pids = [int((tmp_path / name).read_text()) for name in ("self", "child")]
    await until(lambda: not any(map(alive, pids)))
