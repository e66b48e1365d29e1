"""/model: which version of the model answers, and what taught it."""

from __future__ import annotations

from aiogram import Router
from aiogram.types import Message

from bot.admin.progress import taught_by
from bot.handlers.commands import Command
from bot.handlers.request import Request


def router() -> Router:
    """Return the handler of this module."""
    info = Router(name="model info")
    info.message.register(model, Command("model"))
    return info


async def model(message: Message, request: Request) -> None:
    """Show the version of the live model, and how many votes went into it."""
    ledger, reply, say = request.services.ledger, request.reply, request.say
    live = await ledger.models.live()
    if live is None:
        await reply.finish(say("There's no model yet."))
        return
    version = await ledger.models.version(live.id)
    name = say("Version {number} ({model})", number=version.number, model=live.id)
    if live.run is None:
        await reply.finish(say("{version}. The original model; it hasn't learned from any votes yet.", version=name))
        return
    await reply.finish(say("{version}, trained on {taught}.", version=name, taught=taught_by(version.taught, say)))
