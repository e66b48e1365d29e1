"""/model: which version of the model answers, and what taught it."""

from __future__ import annotations

from aiogram import Router
from aiogram.types import Message

from bot.admin.run_summary import taught_by
from bot.handlers.commands import Command
from bot.i18n import Say
from bot.telegram.outbox import Reply
from storage.ledger import Ledger


def router() -> Router:
    """The handlers of this module."""
    version = Router(name="version")
    version.message.register(model, Command("model"))
    return version


async def model(message: Message, reply: Reply, say: Say, ledger: Ledger) -> None:
    """Say who answers, and where people's thumbs have gone."""
    live = await ledger.models.live()
    if live is None:
        await reply.finish(say("There is no model yet."))
        return
    version = await ledger.models.version(live.id)
    name = say("Version {number} ({model})", number=version.number, model=live.id)
    if live.run is None:
        await reply.finish(say("{version}, as it came. Nobody's thumbs have taught it yet.", version=name))
        return
    await reply.finish(say("{version}, taught by {taught}.", version=name, taught=taught_by(version.taught, say)))
