"""People blocked by an operator on the web page (table `blocks`); `limits.blocked` lists others.

Erasing a person's data does not lift the block.
"""

from __future__ import annotations

from storage.base import Queries

BLOCKED = "SELECT person FROM blocks"


class Blocks(Queries):
    """The blocked people in the ledger."""

    async def add(self, person: int, reviewer: str) -> None:
        """Block a person on behalf of the operator `reviewer`; do nothing if the person is already blocked."""
        await self._execute(
            "INSERT INTO blocks(person, reviewer, created) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (person, reviewer, self._clock()),
        )

    async def remove(self, person: int) -> None:
        """Lift the block on a person, if there is one."""
        await self._execute("DELETE FROM blocks WHERE person = ?", [person])

    async def includes(self, person: int) -> bool:
        """Return whether a person is blocked."""
        return bool(await self._number("SELECT EXISTS (SELECT 1 FROM blocks WHERE person = ?)", [person]))
