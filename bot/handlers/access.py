"""Access control for the bot, and for admins' commands and buttons.

The lists in `[limits]`, which say who may use the bot, and the people blocked on the web page are checked
before an update is processed any further. If a user may not use the bot, only the update itself is
recorded. The operator cannot take away users' right to view and delete the data stored about them.
"""

from __future__ import annotations

from typing import Any, Final

from aiogram import BaseMiddleware, Router
from aiogram.filters import or_f
from aiogram.types import CallbackQuery, Message, TelegramObject, Update
from cachetools import TTLCache

from bot.handlers import privacy
from bot.handlers.button_taps import acknowledge
from bot.handlers.commands import Command
from bot.handlers.menu import ADMINS
from bot.handlers.request import Handler, Request
from bot.telegram.callback_data import ADMIN_BUTTONS, Delete, Learn, LearnAsGuest
from bot.updates.ordering import command_of

SILENT_SECONDS: Final = 600.0
"""A user who keeps writing gets only one refusal within this time."""

REMEMBERED: Final = 4096

_RIGHTS: Final = or_f(Learn.filter(), LearnAsGuest.filter(), Delete.filter())


class Access(BaseMiddleware):
    """Passes on updates from users who may use the bot, and refuses all others."""

    def __init__(self) -> None:
        self._refused: TTLCache[int, None] = TTLCache(REMEMBERED, SILENT_SECONDS)

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Handle an update if its sender may use the bot, and otherwise refuse it."""
        assert isinstance(event, Update)
        request: Request = data["request"]
        guest = event.guest_message
        chat = guest.chat if guest and guest.chat.type != "private" else data.get("event_chat")
        limits, person = request.services.settings.limits, request.user.id
        blocked = request.blocked or person in limits.blocked
        allowed = not blocked and limits.allows(person, chat.id if chat else 0)
        if request.is_admin or allowed or await _exercises_a_right(event):
            return await handler(event, data)
        await self._refuse(event, request, blocked)
        return None

    async def _refuse(self, event: Update, request: Request, blocked: bool) -> None:
        say, person = request.say, request.user.id
        if event.callback_query:
            await acknowledge(event.callback_query, say("I'm not allowed to talk with you here."))
        elif event.message and event.message.chat.type == "private" and person not in self._refused:
            self._refused[person] = None
            if blocked:
                text = say("The operator has blocked you.")
            else:
                text = say(
                    "Sorry, this is a private bot. Ask its operator to let you in; your user ID is {id}.", id=person
                )
            await request.reply.finish(text)


async def _exercises_a_right(event: Update) -> bool:
    if event.callback_query:
        return bool(await _RIGHTS(event.callback_query))
    return event.message is not None and command_of(event.message.text) in privacy.COMMANDS


def register(router: Router) -> None:
    """Register the handlers that refuse admins' commands and buttons to users who are not admins."""
    router.message.register(refuse_command, Command(*ADMINS), _is_no_admin)
    router.callback_query.register(refuse_tap, or_f(*(button.filter() for button in ADMIN_BUTTONS)), _is_no_admin)


async def _is_no_admin(event: TelegramObject, request: Request) -> bool:
    return not request.is_admin


async def refuse_command(message: Message, request: Request) -> None:
    """Refuse an admin command from a user who is not an admin."""
    await request.whisper(request.say("Only admins can do that. /help shows what I can do for you."))


async def refuse_tap(query: CallbackQuery, request: Request) -> None:
    """Refuse a tap on an admin's button by a user who is not an admin.

    An admin may have forwarded the message with the button.
    """
    await acknowledge(query, request.say("Only admins can do that."))
