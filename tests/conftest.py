"""In which order the files are begun: `make test` shares them among processes, and no long one may begin last."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked `long` come first, in their usual order like all others."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
