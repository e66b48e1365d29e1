"""Messages to admins with buttons about a candidate or a canary (table `model_buttons`)."""

from __future__ import annotations

from typing import Final

from storage.base import Queries
from storage.learning_records import Model

_OUTDATED: Final = (
    "SELECT chat, message FROM model_buttons JOIN models ON models.id = model"
    " WHERE models.state <> model_buttons.state OR (directory = '' AND NOT pruned)"
)


class ModelButtons(Queries):
    """The messages with buttons about models in the ledger."""

    async def add(self, chat: int, message: int, model: Model) -> None:
        """Record a message whose buttons are useful as long as the model stays in its present state."""
        await self._execute(
            "INSERT OR REPLACE INTO model_buttons VALUES (?, ?, ?, ?)", (chat, message, model.id, model.state)
        )

    async def outdated(self) -> list[tuple[int, int]]:
        """Return the chat and the ID of each message whose model is in another state by now or was deleted."""
        return await self._list(lambda row: (row["chat"], row["message"]), _OUTDATED)

    async def remove(self, chat: int, message: int) -> None:
        """Forget a message, because it has no buttons any more."""
        await self._execute("DELETE FROM model_buttons WHERE chat = ? AND message = ?", (chat, message))
