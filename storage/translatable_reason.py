"""User-facing text that keeps its template and values so that it can be translated when it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self


class Reason(str):
    """English text built from a template and values, for example the reason why a run failed.

    A reason is an ordinary `str` that can be logged, stored and compared. Errors take a reason as their only
    argument: `raise StorageError(Reason("There is no model {model}.", model=name))`. Values may themselves
    be reasons.
    """

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, /, **values: object) -> Self:
        """Create a reason by formatting `template` with `values`."""
        reason = super().__new__(cls, template.format(**values) if values else template)
        reason.template, reason.values = template, values
        return reason

    def __str__(self) -> Self:
        """Return the reason itself, so that `str(error)` keeps the reason's template and values."""
        return self

    def translated(self, gettext: Callable[[str], str]) -> str:
        """Return the text in another language, using `gettext` to translate the template."""
        values = {
            name: value.translated(gettext) if isinstance(value, Reason) else value
            for name, value in self.values.items()
        }
        return gettext(self.template).format(**values) if values else gettext(self.template)

    def parts(self) -> dict[str, Any]:
        """Return the template and the values as a nested dict that can be stored as JSON."""
        values = {name: value.parts() if isinstance(value, Reason) else value for name, value in self.values.items()}
        return {"template": self.template, "values": values}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Self:
        """Rebuild a reason from the dict that its `parts` method returned."""
        values = {name: cls.of(value) if isinstance(value, dict) else value for name, value in parts["values"].items()}
        return cls(parts["template"], **values)


def join(reasons: list[Reason]) -> Reason:
    """Return one reason that joins `reasons` with semicolons."""
    return _chained(Reason("{reason}; {others}"), reasons)


def sentences(reasons: list[Reason]) -> Reason:
    """Return one reason that consists of several sentences."""
    return _chained(Reason("{reason} {others}"), reasons)


def listed(reasons: list[Reason]) -> Reason:
    """Return one reason that lists several short reasons, separated by commas."""
    return _chained(Reason("{reason}, {others}"), reasons)


def _chained(form: Reason, reasons: list[Reason]) -> Reason:
    first, *others = reasons
    return Reason(form.template, reason=first, others=_chained(form, others)) if others else first


def stored(text: str, parts: str) -> str:
    """Rebuild a reason from its two columns in the ledger, which hold its text and its parts.

    Rows written before migration 18 have no parts; for them, `text` is returned unchanged.
    """
    return Reason.of(json.loads(parts)) if parts else text


def stored_parts(text: str) -> str:
    """Return the JSON for the column `reason_parts`, or an empty string if `text` is a plain string."""
    return json.dumps(text.parts(), ensure_ascii=False, default=str) if isinstance(text, Reason) else ""
