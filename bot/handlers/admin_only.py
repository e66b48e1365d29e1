"""What is for admins alone: a polite refusal for everybody else, before the handlers of what they asked for."""

from __future__ import annotations

from typing import Final

from aiogram import Router
from aiogram.filters import or_f
from aiogram.types import CallbackQuery, Message, TelegramObject, User

from bot.handlers.callbacks import acknowledge
from bot.handlers.commands import Command
from bot.handlers.menu import ADMINS, NODES
from bot.i18n import Say
from bot.settings import BotSettings
from bot.telegram.keyboards import CancelBroadcast, CancelRun, Drain, Overrule, Promote, RollBack, Undrain
from bot.telegram.outbox import Reply

_IS_AN_ADMINS: Final = or_f(
    *(button.filter() for button in (CancelRun, CancelBroadcast, Promote, RollBack, Overrule, Drain, Undrain))
)


def router() -> Router:
    """The handlers of this module: whoever is no admin gets no further."""
    admin = Router(name="admin")
    admin.message.register(not_yours, Command(*ADMINS, *NODES), _is_stranger)
    admin.callback_query.register(not_yours_to_tap, _IS_AN_ADMINS, _is_stranger)
    return admin


async def _is_stranger(event: TelegramObject, settings: BotSettings, event_from_user: User | None = None) -> bool:
    return event_from_user is None or event_from_user.id not in settings.telegram.admins


async def not_yours(message: Message, reply: Reply, say: Say) -> None:
    """Refuse politely."""
    await reply.finish(say("Only my admins can do that. /help shows what I can do for you."))


async def not_yours_to_tap(query: CallbackQuery, say: Say) -> None:
    """Refuse politely, where an admin has forwarded buttons."""
    await acknowledge(query, say("Only my admins can do that."))
