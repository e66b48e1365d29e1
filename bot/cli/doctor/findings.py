"""The findings of `thumbtune doctor`'s checks, and a report that shows failures first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from bot.cli.terminal import results


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    `cure` says what to do. A finding that is `ok` but has a `cure` is a warning.
    """

    name: str
    ok: bool
    detail: str
    cure: str = ""

    @property
    def mark(self) -> str:
        """The status shown at the start of the line, in Rich markup."""
        if not self.ok:
            return "[red]failed[/]"
        return "[yellow]warning[/]" if self.cure else "[green]ok[/]"


def report(findings: Sequence[Finding], *, verbose: bool = False) -> bool:
    """Print failures, then warnings, then the number of checks that passed.

    With `verbose`, the checks that passed are listed as well.

    Returns:
        Whether there are no failures.
    """
    failed = [each for each in findings if not each.ok]
    warned = [each for each in findings if each.ok and each.cure]
    passed = [each for each in findings if each.ok and not each.cure]
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for each in [*failed, *warned, *(passed if verbose else ())]:
        table.add_row(each.mark, escape(each.name), escape(each.detail), escape(each.cure))
    if table.row_count:
        results.print(table)
    counts = ((len(failed), "failed"), (len(warned), "warning" if len(warned) == 1 else "warnings"))
    summary = [f"{number} {kind}" for number, kind in counts if number]
    listed = "" if verbose else " (--verbose lists them)"
    results.print(", ".join([*summary, f"{len(passed)} checks passed{listed}"]) + ".")
    return not failed
