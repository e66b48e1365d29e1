"""What the doctor's checks return, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `cure` is empty when `ok`."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


def report(findings: Iterable[Finding], console: Console) -> bool:
    """Print the findings as a table; True when all is well."""
    found = list(findings)
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row("[green]ok[/]" if each.ok else "[red]no[/]", each.name, each.detail, each.cure)
    console.print(table)
    return all(each.ok for each in found)
