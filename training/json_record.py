"""Dataclasses stored as JSON, in files that are read by another process or after a restart.

The module needs only the standard library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

from storage.atomic_files import write_text
from storage.translatable_reason import Reason


class Record:
    """The base class of frozen dataclasses stored as JSON.

    Fields hold plain values, `Reason` objects or other records; a field that holds a record must have the
    record's class as its default factory.
    """

    __slots__ = ()

    def to_json(self) -> str:
        """Return the record as a JSON object."""
        values = {
            name: value.parts() if isinstance(value, Reason) else value
            for name, value in asdict(self).items()  # type: ignore[call-overload]
        }
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the record in a JSON object.

        Raises:
            ValueError: The text is not a JSON object or has an unknown key.
            TypeError: A key is missing.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}: not a JSON object")
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the record with the given values, as parsed from JSON.

        The errors raised are those of `from_json`.
        """
        known = {each.name: each.default_factory for each in fields(cls)}  # type: ignore[arg-type]
        unknown = values.keys() - known.keys()
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown keys {sorted(unknown)}")
        values = dict(values)
        for name, kind in known.items():
            if name in values and is_dataclass(kind):
                values[name] = kind(**values[name])
            elif isinstance(value := values.get(name), dict) and value.keys() == {"template", "values"}:
                values[name] = Reason.of(value)
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write the record to a file atomically: a reader never sees a partly written record."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record in a file.

        Raises:
            OSError: The file cannot be read.
            ValueError, TypeError: The file's content is invalid (see `from_json`).
        """
        return cls.from_json(path.read_text(encoding="utf-8"))
