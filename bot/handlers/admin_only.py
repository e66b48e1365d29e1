"""Refuse admins' commands and buttons to other people, before their handlers see them."""

from __future__ import annotations

from typing import Final

from aiogram import Router
from aiogram.filters import or_f
from aiogram.types import CallbackQuery, Message, TelegramObject

from bot.handlers.callbacks import acknowledge
from bot.handlers.commands import Command
from bot.handlers.menu import ADMINS, NODES
from bot.handlers.request import Request
from bot.telegram.keyboards import CancelBroadcast, CancelRun, Drain, Overrule, Promote, RollBack, Undrain

_IS_AN_ADMINS: Final = or_f(
    *(button.filter() for button in (CancelRun, CancelBroadcast, Promote, RollBack, Overrule, Drain, Undrain))
)


def router() -> Router:
    """Return the handlers of this module. They skip the updates of admins."""
    admin = Router(name="admin")
    admin.message.register(refuse_command, Command(*ADMINS, *NODES), _is_no_admin)
    admin.callback_query.register(refuse_tap, _IS_AN_ADMINS, _is_no_admin)
    return admin


async def _is_no_admin(event: TelegramObject, request: Request) -> bool:
    return not request.is_admin


async def refuse_command(message: Message, request: Request) -> None:
    """Refuse an admin's command."""
    await request.reply.finish(request.say("Only admins can do that. /help shows what I can do for you."))


async def refuse_tap(query: CallbackQuery, request: Request) -> None:
    """Refuse a tap on an admin's button, which an admin may have forwarded."""
    await acknowledge(query, request.say("Only admins can do that."))
