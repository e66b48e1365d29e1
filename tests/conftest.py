"""What tests of every kind share: the stage that a bot plays on, and in which order the files are begun.

`make test` shares the files among processes, and no long one may begin last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.emulator import Emulator
from tests.chatting import Stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A running emulator and an empty data directory."""
    emulator = Emulator()
    url = await emulator.start()
    try:
        yield Stage(emulator, url, tmp_path / "data")
    finally:
        await emulator.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked `long` come first, in their usual order like all others."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
