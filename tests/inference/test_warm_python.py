"""The interpreter with preloaded libraries: its workers behave like processes of their own, whatever is killed."""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from inference.process.child import Child
from inference.process.warm_python import WarmPython
from tests.support.chatting import until

WORKER = """
import os, subprocess, sys, time
found = "preloaded" if "colorsys" in sys.modules else "cold"
print(found, os.environ.get("WORD"), os.getcwd(), sys.argv[1:], os.getpid())
print("error output", file=sys.stderr)
if sys.argv[1] == "dump":
    from inference.process import stack_dump
    stack_dump.enable()
    print("enabled")
if sys.argv[1] in ("parent", "orphan"):
    print(subprocess.Popen(["sleep", "60"]).pid)
if sys.argv[1] in ("sleep", "parent", "dump"):
    time.sleep(60)
sys.exit(0 if sys.argv[1] == "orphan" else int(sys.argv[1]))
"""
REQUEST = json.dumps([["-m", "this"], dict(os.environ), str(Path.cwd())]).encode()


@pytest_asyncio.fixture
async def warm(tmp_path: Path) -> AsyncIterator[WarmPython]:
    """A running interpreter that has imported `colorsys`."""
    (tmp_path / "worker_module.py").write_text(WORKER, encoding="utf-8")
    made = interpreter(tmp_path)
    await made.start()
    assert made.running, (tmp_path / "warm.log").read_text(encoding="utf-8")
    yield made
    await made.stop()


def interpreter(folder: Path, *modules: str, idle: float = 0) -> WarmPython:
    """Return an interpreter that imports the modules, for which it also looks in the folder."""
    found = {"PYTHONPATH": os.pathsep.join((str(folder), str(Path.cwd()))), "LD_LIBRARY_PATH": str(folder)}
    return WarmPython(sys.executable, modules or ("colorsys",), log=folder / "warm.log", environment=found, idle=idle)


def gone(process: int) -> bool:
    """Return whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def started(warm: WarmPython, folder: Path, word: str) -> tuple[Child, list[str]]:
    """Start a worker, and return it with the list that its lines of standard output are added to."""
    lines: list[str] = []
    child = await Child.start(
        warm.forked([sys.executable, "-m", "worker_module", word]),
        log=folder / "worker.log",
        cwd=folder,
        environment={"WORD": "given", "PYTHONPATH": str(folder)},
        on_line=lines.append,
    )
    return child, lines


async def test_a_worker_has_its_own_environment_folder_output_and_exit_status(warm: WarmPython, tmp_path: Path) -> None:
    child, lines = await started(warm, tmp_path, "3")
    assert await child.wait() == 3
    (line,) = lines
    assert line.startswith(f"preloaded given {tmp_path} ['3'] ")
    assert "error output" in (tmp_path / "worker.log").read_text(encoding="utf-8")


async def test_signals_reach_the_worker(warm: WarmPython, tmp_path: Path) -> None:
    child, lines = await started(warm, tmp_path, "sleep")
    await until(lambda: bool(lines))
    child.terminate()
    assert await child.wait() == -signal.SIGTERM


async def test_a_worker_ends_with_the_process_that_stands_for_it(warm: WarmPython, tmp_path: Path) -> None:
    child, lines = await started(warm, tmp_path, "sleep")
    await until(lambda: bool(lines))
    worker = int(lines[0].split()[-1])
    assert worker != child.pid
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    await until(lambda: gone(worker))


@pytest.mark.parametrize("word", ["parent", "orphan"])
async def test_what_a_worker_started_ends_with_it(warm: WarmPython, tmp_path: Path, word: str) -> None:
    """Whether the worker is stopped or ends by itself, its child processes are killed, and nobody waits for them."""
    child, lines = await started(warm, tmp_path, word)
    await until(lambda: len(lines) == 2)
    async with asyncio.timeout(4):  # a pipe that a child process holds open would take five seconds
        if word == "parent":
            await child.stop(1)
        else:
            await child.wait()
    await until(lambda: gone(int(lines[1])))


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_workers_end_with_the_interpreter(warm: WarmPython, tmp_path: Path, end: str) -> None:
    child, lines = await started(warm, tmp_path, "parent")
    await until(lambda: len(lines) == 2)
    async with asyncio.timeout(4):
        if end == "kill":
            server = int(Path(f"/proc/{lines[0].split()[-1]}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(server, signal.SIGKILL)
        else:
            await warm.stop()
        assert await child.wait() == 1 if end == "kill" else await child.wait() != 0
    await until(lambda: gone(int(lines[0].split()[-1])) and gone(int(lines[1])))


async def test_a_worker_writes_its_stack_before_it_is_stopped(warm: WarmPython, tmp_path: Path) -> None:
    child, lines = await started(warm, tmp_path, "dump")
    await until(lambda: len(lines) == 2)
    await child.dump_stacks()
    await child.stop(1)
    log = (tmp_path / "worker.log").read_text(encoding="utf-8")
    assert "most recent call first" in log
    assert "worker_module.py" in log


async def test_a_library_that_prints_does_not_pass_for_ready(tmp_path: Path) -> None:
    (tmp_path / "printing.py").write_text("import time\nprint('hello', flush=True)\ntime.sleep(0.5)\n")
    warm = interpreter(tmp_path, "printing")
    try:
        starting = asyncio.create_task(warm.start())
        await until(lambda: (tmp_path / "warm.log").exists() and "hello" in (tmp_path / "warm.log").read_text())
        assert not warm.running
        starting.cancel()
        await asyncio.wait((starting,))
        assert not warm.running
        await warm.start()  # waits for the one that is starting
        assert warm.running
        assert (tmp_path / "warm.log").read_text().count("--- process") == 1
    finally:
        await warm.stop()


async def test_without_a_temporary_folder_workers_start_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    warm = interpreter(tmp_path)
    await warm.start()
    assert not warm.running
    assert "workers start without preloaded libraries" in caplog.text
    await warm.stop()


async def test_a_worker_starts_cold_where_the_interpreter_has_ended(warm: WarmPython, tmp_path: Path) -> None:
    command = warm.forked([sys.executable, "-m", "worker_module", "0"])
    await warm.stop()
    assert not warm.running
    assert warm.forked(["python", "-m", "x"]) == ["python", "-m", "x"]
    lines: list[str] = []
    child = await Child.start(
        command, log=tmp_path / "worker.log", environment={"PYTHONPATH": str(tmp_path)}, on_line=lines.append
    )
    assert await child.wait() == 0
    assert lines[0].startswith("cold ")


async def test_it_ends_when_idle_and_starts_again(tmp_path: Path) -> None:
    (tmp_path / "worker_module.py").write_text(WORKER, encoding="utf-8")
    warm = interpreter(tmp_path, idle=0.2)
    try:
        await warm.start()
        child, lines = await started(warm, tmp_path, "sleep")
        await until(lambda: bool(lines))
        await asyncio.sleep(0.5)
        assert warm.running  # it is in use
        await child.stop(1)
        await until(lambda: not warm.running)
        await warm.start()
        assert warm.running
    finally:
        await warm.stop()


async def test_a_library_that_cannot_be_imported_is_left_to_the_worker(tmp_path: Path) -> None:
    warm = interpreter(tmp_path, "there_is_no_such_module", "colorsys")
    try:
        await warm.start()
        assert warm.running
        assert "there_is_no_such_module" in (tmp_path / "warm.log").read_text(encoding="utf-8")
    finally:
        await warm.stop()


async def test_no_worker_is_forked_where_a_library_has_initialized_cuda(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "driver.c").write_text("int cuDeviceGetCount(int *count) { *count = 1; return 0; }")
    line = ("gcc", "-shared", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c"))
    compiler = await Child.start(line, log=tmp_path / "gcc.log")
    assert await compiler.wait() == 0
    warm = interpreter(tmp_path)
    try:
        await warm.start()
        assert not warm.running
        assert warm.forked([sys.executable, "-m", "x"]) == [sys.executable, "-m", "x"]
        assert "has initialized CUDA" in (tmp_path / "warm.log").read_text(encoding="utf-8")
        assert "workers start without preloaded libraries" in caplog.text
        caplog.clear()
        await warm.start()
        assert not caplog.text, "a failure is not repeated for each worker"
    finally:
        await warm.stop()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(0, id="before the request"),
        pytest.param(len(REQUEST) // 2, id="in the middle of it"),
        pytest.param(len(REQUEST), id="after it"),
    ],
)
async def test_a_client_killed_while_it_connects(warm: WarmPython, tmp_path: Path, sent: int) -> None:
    address = warm.forked([sys.executable, "-m", "this"])[3]
    null = os.open(os.devnull, os.O_RDWR)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        streams = array.array("i", [null] * 3)
        connection.sendmsg([len(REQUEST).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(REQUEST[:sent])
    os.close(null)
    child, lines = await started(warm, tmp_path, "0")
    assert await child.wait() == 0
    assert lines[0].startswith("preloaded ")
