"""Shared fixtures, and the order in which the test files run.

`make test` distributes the test files over several processes, so long files must start first.
"""

from __future__ import annotations

import gc
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

# Set before torch is imported, here and in all children: `make test` runs one process per core, and the torch threads
# of a process wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until all test files are imported; see `pytest_collection`

from bot.aiogram_import import import_aiogram

import_aiogram()

from bot.cli.main import main
from inference.process.yapf_import import import_yapf
from telegram_emulator import Emulator
from tests.support.bot_process import Ended, Thumbtune
from tests.support.chatting import Stage
from tests.support.ledgers import copied_ledgers
from tests.support.warm_python import WarmPython

collect_ignore = [] if find_spec("ray") else ["ray"]
"""`make test-ray` runs the Ray tests in their own environment."""

import_yapf()  # the test processes import mmengine at the same time


@pytest.fixture(scope="session", autouse=True)
def ledgers_are_copied() -> Iterator[None]:
    """Create new ledgers in this process by copying a template, except in the tests of `Ledger.open`."""
    with copied_ledgers():
        yield


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once() -> Iterator[None]:
    """Load the CA certificates once for all bots in this process, because each load takes 16 ms."""
    with patch("ssl.create_default_context", cache(ssl.create_default_context)):
        yield


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Yield a running Telegram emulator and an empty data directory.

    In private chats, the bot hardly slows down after flood control refuses a message, and it repeats interrupted calls
    almost at once.
    """
    monkeypatch.setattr("bot.telegram.rate_limit.PRIVATE_SECONDS", 0.0001)
    monkeypatch.setattr("bot.telegram.recorded_messages._RESEND_PAUSES", (0.01,) * 5)
    monkeypatch.setattr("bot.telegram.client.FIRST_BACKOFF", 0.01)
    emulator = Emulator()
    url = await emulator.start()
    try:
        yield Stage(emulator, url, tmp_path / "data")
    finally:
        await emulator.stop()


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the path of a Python interpreter that starts workers without importing torch each time.

    All test processes share the interpreter.
    """
    base = tmp_path_factory.getbasetemp()
    warm = WarmPython.start(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
    yield str(warm.program)
    warm.stop()


@pytest.fixture(scope="session")
def sparse_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a checkpoint of a size in `SIZES`, with a sparse weight file."""

    @cache
    def written(name: str) -> Path:
        from benchmarks.memory_table import write_sparse
        from benchmarks.random_checkpoint import SIZES

        directory = tmp_path_factory.mktemp(f"sparse-{name}")
        write_sparse(SIZES[name], directory)
        return directory

    return written


@pytest.fixture
def thumbtune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thumbtune:
    """Return a function that runs the command line in an empty folder, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["thumbtune", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Enable garbage collection once the test files are imported, and exclude the imported objects from it."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move tests marked `long` to the front, and keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
