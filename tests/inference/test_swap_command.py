"""The operator's command that swaps an external server's model: placeholders, execution and verification."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference.messages import EngineUnavailable
from inference.serving.engine_launch import Launch, free_port
from inference.serving.engine_process import Worker
from inference.serving.swap_command import command_line, switch
from inference.settings import InferenceSettings
from tests.support.children import alive, until


def launch(folder: Path, *command: str, endpoint: str = "http://gpu-1:8000", **more: Any) -> Launch:
    settings = InferenceSettings.model_validate({"endpoints": [endpoint], "swap_command": command} | more)
    return Launch("run-7", Path("/models/run 7"), None, folder / "swap.log", settings, endpoint)


def test_switching_fills_in_the_command(tmp_path: Path) -> None:
    """Each placeholder is replaced within its argument, without a shell.

    Unknown names are refused, and `{}` is left as it is.
    """
    line = ("ssh", "{host}", "swap --port={port} '{model_dir}'", "{model}", "{endpoint}", "{}", "${HOME}!")
    with pytest.raises(ValidationError, match=r"HOME.*is not known; there are endpoint, host"):
        launch(tmp_path, *line)
    assert command_line(launch(tmp_path, *line[:-1])) == [
        *("ssh", "gpu-1", "swap --port=8000 '/models/run 7'", "run-7", "http://gpu-1:8000", "{}")
    ]
    assert command_line(launch(tmp_path, "{host}:{port}", endpoint="https://[::1]")) == ["::1:443"]


def test_switching_is_for_endpoints() -> None:
    """A swap command without external servers is refused with an error that names the setting."""
    with pytest.raises(ValidationError, match="swap_command is for endpoints"):
        InferenceSettings(swap_command=("true",))


async def test_switching_without_a_program(tmp_path: Path) -> None:
    """A swap command whose program does not exist raises an error that names the setting."""
    new = launch(tmp_path, str(tmp_path / "swap.sh"))
    with pytest.raises(EngineUnavailable, match=r"inference\.swap_command .*could not be started"):
        await switch(new, new)


async def test_switching_reports_the_last_output_lines(tmp_path: Path) -> None:
    """A failing swap command raises an error that includes the last lines of its output."""
    code = "import sys; print(*range(99), sep='\\n'); sys.exit('no such host')"
    new = launch(tmp_path, sys.executable, "-c", code)
    with pytest.raises(EngineUnavailable, match=r"exit code 1(?s:.)*\n98\nno such host$") as raised:
        await switch(new, new)
    assert "\n50\n" not in str(raised.value)


async def test_switching_passes_no_secrets_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap command inherits the bot's environment, except for secrets such as the bot's token."""
    monkeypatch.setenv("THUMBTUNE_TELEGRAM__TOKEN", "a secret")
    monkeypatch.setenv("CUE", "no secret")
    new = launch(tmp_path, "sh", "-c", "echo $CUE; echo token: $THUMBTUNE_TELEGRAM__TOKEN; exit 1")
    with pytest.raises(EngineUnavailable, match=r"no secret\ntoken:$"):
        await switch(new, new)


async def test_switching_server_does_not_come_back(tmp_path: Path) -> None:
    """A server that does not answer within `start_timeout` after the swap command raises an error."""
    new = launch(tmp_path, "true", endpoint=f"http://127.0.0.1:{free_port()}", start_timeout=0.5)
    with pytest.raises(EngineUnavailable, match=r"does not answer 0\.5 s after"):
        await switch(new, new)


async def test_switching_logs_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of recent swap commands is kept in separate logs.

    The log of a server that such a command started is rotated while it is still in use.
    """
    monkeypatch.setattr("inference.serving.engine_process._LOOK_SECONDS", 0.02)
    new = launch(tmp_path, "sh", "-c", "echo again; exit 1", log_megabytes=0.01)
    for _ in range(5):
        with pytest.raises(EngineUnavailable):
            await switch(new, new)
    logs = [tmp_path / name for name in ("swap.log", "swap.log.1", "swap.log.2", "swap.log.3")]
    assert sorted(tmp_path.iterdir()) == logs
    assert [log.read_text() for log in logs] == ["again\n"] * 4
    worker = Worker(new)
    watching = asyncio.create_task(worker.gone())
    with new.log.open("ab", buffering=0) as server:
        server.write(b"x" * 9_000)
        await asyncio.sleep(0.1)
        assert logs[1].read_text() == "again\n"
        server.write(b"y" * 2_000)
        await until(lambda: new.log.stat().st_size == 0)
        server.write(b"on\n")
    worker.give_up("enough")
    await watching
    assert [log.stat().st_size for log in logs] == [3, 6 + 9_000 + 2_000, 6, 6]


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_switching_ends_the_command_and_its_children(tmp_path: Path, how: str) -> None:
    """A swap command that is cancelled or times out is ended together with all the processes it started."""
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
