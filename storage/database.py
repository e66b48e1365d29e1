"""sqlite-utils' classes, imported without pandas, which takes 0.4 s and 70 MB and is installed only for the trainer."""

from __future__ import annotations

import sys

_ABSENT = "pandas" not in sys.modules
if _ABSENT:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # sqlite-utils imports it wherever it is installed
try:
    from sqlite_utils import Database, Migrations  # noqa: TID251 - the only import
finally:
    if _ABSENT:
        del sys.modules["pandas"]

__all__ = ["Database", "Migrations"]
