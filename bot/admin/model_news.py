"""News for admins about what other processes or other admins have done with models.

A promotion that the command line requested is announced once it is done, even if the bot has been restarted
since. Once the state of a candidate or a canary has changed, messages about it lose their buttons and say
what happened instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiogram import Bot

from bot.admin.notifications import CAPTION_LIMIT, Notifications, cut
from bot.admin.run_outcome import sentence
from bot.i18n import Say, Translator, later
from bot.telegram.errors import CALL_ERRORS, Undelivered
from bot.telegram.formatting import LIMIT
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_buttons import ModelMessage
from storage.state_machines import ModelState
from storage.translatable_reason import Reason

ON_COMMAND_LINE: Final = later("Changed on the command line: {what}")
DECIDED_BY: Final = later("{what} Decided by {name}.")
NOW: Final = {
    ModelState.CANDIDATE: later("{model} is a candidate again: its trial could not go on after a restart."),
    ModelState.CANARY: later("{model} was approved and is a canary now."),
    ModelState.LIVE: later("{model} now answers everyone."),
    ModelState.RETIRED: later("{model} went live; another model has replaced it since."),
}
REJECTED: Final = later("{model} was rejected. {reason}")
APPROVED: Final = later("{model} was approved and now answers everyone.")
DELETED: Final = later("{model} was deleted.")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ModelNews:
    """Announces promotions, and updates the messages whose buttons no longer apply."""

    bot: Bot
    ledger: Ledger
    notices: Notifications
    translator: Translator

    async def tell(self) -> None:
        """Announce completed promotions, and update the messages whose buttons no longer apply.

        If Telegram cannot be reached, the next call tries to update the messages again.
        """
        for promotion in await self.ledger.promotions.unannounced():
            model = await self.ledger.models.get(promotion.model)
            what = Reason(NOW[ModelState.LIVE], model=model.id)
            await asyncio.gather(*self.notices.model_changed(model, Reason(ON_COMMAND_LINE, what=what)))
            await self.ledger.promotions.announced(promotion.id)
        for message in await self.ledger.model_buttons.outdated():
            try:
                await self._update(message)
            except Undelivered:
                return
            except CALL_ERRORS as error:  # the message was deleted, or is too old
                log.info("a message about a model was not updated", chat=message.chat, error=str(error))
            await self.ledger.model_buttons.remove(message.chat, message.message)

    async def _update(self, message: ModelMessage) -> None:
        """Remove the buttons of a message, and add to its text what happened to the model."""
        place: dict[str, Any] = {"chat_id": message.chat, "message_id": message.message}
        say = self.translator.for_person(await self.ledger.people.get(message.chat))
        what = what_happened(message, say)
        limit = (CAPTION_LIMIT if message.caption else LIMIT) - len(what) - 1
        text = f"{cut(message.text, limit)}\n{what}"
        if not message.text:  # recorded by an earlier version
            await self.bot.edit_message_reply_markup(**place)
        elif message.caption:
            await self.bot.edit_message_caption(**place, caption=text)
        else:
            await self.bot.edit_message_text(text, **place)


def approved(model: Model) -> Reason:
    """Return the news that a model was approved and is now a canary or live."""
    return Reason(NOW[model.state] if model.state is ModelState.CANARY else APPROVED, model=model.id)


def what_happened(message: ModelMessage, say: Say) -> str:
    """Return what has happened to a message's model since the message was sent, and which admin decided it, if any."""
    model = message.model
    if not model.kept:
        what = say(DELETED, model=model.id)
    elif message.state is ModelState.CANDIDATE and model.state is ModelState.LIVE:
        what = say(approved(model))
    elif model.state is ModelState.REJECTED:
        what = say(REJECTED, model=model.id, reason=sentence(say(model.reason), say))
    else:
        what = say(NOW[model.state], model=model.id)
    return say(DECIDED_BY, what=what, name=model.changed_by) if model.changed_by else what
