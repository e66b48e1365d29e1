"""Messages to admins with buttons about a candidate or a canary (table `model_buttons`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from storage.base import Queries, every, query
from storage.database import Database
from storage.learning_records import Model
from storage.models import get_model
from storage.state_machines import ModelState

_OUTDATED: Final = (
    "SELECT chat, message, model, model_buttons.state, text, caption"
    " FROM model_buttons JOIN models ON models.id = model"
    " WHERE models.state <> model_buttons.state OR (directory = '' AND NOT pruned)"
)


@dataclass(frozen=True, slots=True)
class ModelMessage:
    """A message with buttons about a model.

    Attributes:
        model: The model as it is now.
        state: The state of the model in which the buttons are useful.
        text: The text of the message without its explanation of the buttons; empty if an earlier version recorded it.
        caption: Whether the text is the caption of a picture.
    """

    chat: int
    message: int
    model: Model
    state: ModelState
    text: str
    caption: bool


class ModelButtons(Queries):
    """The messages with buttons about models in the ledger."""

    async def add(self, chat: int, message: int, model: Model, text: str, *, caption: bool = False) -> None:
        """Record a message whose buttons are useful as long as the model stays in its present state.

        `text` is the part of the message's text or caption that stays true after the state has changed.
        """
        await self._execute(
            "INSERT OR REPLACE INTO model_buttons(chat, message, model, state, text, caption)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (chat, message, model.id, model.state, text, caption),
        )

    @query
    def outdated(self, database: Database) -> list[ModelMessage]:
        """Return the messages whose models have since changed state or been deleted."""
        return [
            ModelMessage(chat, message, get_model(database, model), ModelState(state), text, bool(caption))
            for chat, message, model, state, text, caption in every(database, _OUTDATED)
        ]

    async def remove(self, chat: int, message: int) -> None:
        """Remove the record of a message that no longer has buttons."""
        await self._execute("DELETE FROM model_buttons WHERE chat = ? AND message = ?", (chat, message))
