"""A text for people that keeps its template and values, so that it can be translated where it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self


class Reason(str):
    """English text made of a template and values, for example why a run failed.

    The text is an ordinary `str`: log it, store it, compare it. Errors take it as their only argument:
    `raise StorageError(Reason("There is no model {model}.", model=name))`. Values may be reasons themselves.
    """

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, /, **values: object) -> Self:
        """Return the reason with the values in its template."""
        reason = super().__new__(cls, template.format(**values) if values else template)
        reason.template, reason.values = template, values
        return reason

    def __str__(self) -> Self:
        """Return the reason itself, so that `str(error)` still has the template and the values."""
        return self

    def translated(self, gettext: Callable[[str], str]) -> str:
        """Return the text in another language; `gettext` translates a template."""
        values = {
            name: value.translated(gettext) if isinstance(value, Reason) else value
            for name, value in self.values.items()
        }
        return gettext(self.template).format(**values) if values else gettext(self.template)

    def parts(self) -> dict[str, Any]:
        """Return the template and the values in a form that JSON can represent."""
        values = {name: value.parts() if isinstance(value, Reason) else value for name, value in self.values.items()}
        return {"template": self.template, "values": values}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Self:
        """Rebuild a reason from its `parts`."""
        values = {name: cls.of(value) if isinstance(value, dict) else value for name, value in parts["values"].items()}
        return cls(parts["template"], **values)


def join(reasons: list[Reason]) -> Reason:
    """Return several reasons as one."""
    first, *others = reasons
    return Reason("{reason}; {others}", reason=first, others=join(others)) if others else first


def listed(reasons: list[Reason]) -> Reason:
    """Return several short reasons as a list in one sentence."""
    first, *others = reasons
    return Reason("{reason}, {others}", reason=first, others=listed(others)) if others else first


def stored(text: str, parts: str) -> str:
    """Return a reason from its two columns; rows of versions before migration 18 have only the text."""
    return Reason.of(json.loads(parts)) if parts else text


def stored_parts(text: str) -> str:
    """Return the value of the column `reason_parts`: the parts as JSON, or an empty string if there are none."""
    return json.dumps(text.parts(), ensure_ascii=False, default=str) if isinstance(text, Reason) else ""
