"""/start, /help, /new and /language."""

from __future__ import annotations

from aiogram import Router
from aiogram.types import CallbackQuery, Message

from bot.handlers.callbacks import acknowledge, redraw
from bot.handlers.commands import Command
from bot.handlers.menu import EVERYBODY, admins_commands, command_list
from bot.handlers.request import Request
from bot.telegram.keyboards import Speak, languages


def router() -> Router:
    """Return the handlers of this module."""
    basics = Router(name="basics")
    basics.message.register(start, Command("start"))
    basics.message.register(show_help, Command("help"))
    basics.message.register(new, Command("new"))
    basics.message.register(language, Command("language"))
    basics.callback_query.register(language_chosen, Speak.filter())
    return basics


async def start(message: Message, request: Request) -> None:
    """Greet, and show the person's user id."""
    say, user = request.say, request.user
    await request.reply.finish(
        say(
            "Hello, {name}! Send me a picture and ask me about it. You can go on asking about it, and send another one "
            "whenever you like. The thumbs under my answers teach me what you like.\n\n/help shows what I can do. Your "
            "user id is {id}.",
            name=user.first_name,
            id=user.id,
        )
    )


async def show_help(message: Message, request: Request) -> None:
    """Show what the bot can do for this person."""
    services, say = request.services, request.say
    username = (await request.bot.me()).username
    parts = [
        say(
            "Send me a picture, with or without a question, and I will answer. Then ask on: I keep the picture in "
            "mind. Several pictures sent together count as one question."
        ),
        say(
            "🔄 or /retry gives you another answer, ⏹ or /stop ends the one I am writing. Edit your question, and I "
            "answer it anew."
        ),
        say(
            "👍 or 👎 under an answer tells me what you like; you may change your mind. I learn from what is liked "
            "when I am retrained."
        ),
        say(
            "In a group I answer who mentions me (@{name}), who replies to one of my messages, and commands; reply to "
            "somebody's picture and mention me to ask about that. Telegram's privacy mode shows me nothing else there, "
            "unless I am an administrator; and then I pass over it.",
            name=username,
        )
        + " "
        + (
            say("Each person has a conversation of their own.")
            if services.settings.chat.group_sessions == "person"
            else say("All members have one conversation together.")
        ),
        command_list(EVERYBODY, say),
    ]
    if request.is_admin:
        parts += [say("You are one of my admins:"), command_list(admins_commands(len(services.admin.nodes())), say)]
    await request.reply.finish("\n\n".join(parts))


async def new(message: Message, request: Request) -> None:
    """Begin a new conversation."""
    await request.services.conversation.restart(request.question())
    await request.reply.finish(request.say("A fresh start: I have put our conversation aside. Send me a picture!"))


async def language(message: Message, request: Request) -> None:
    """Offer the languages."""
    say = request.say
    await request.reply.finish(
        say("Which language shall I speak with you?"), languages(request.services.translator.languages, say.language)
    )


async def language_chosen(query: CallbackQuery, callback_data: Speak, request: Request) -> None:
    """Remember the choice, and confirm it in the chosen language."""
    services = request.services
    say = services.translator.to(callback_data.code)
    await services.ledger.people.set_language(query.from_user.id, say.language)
    answer = say("I speak English with you from now on.")
    await acknowledge(query, answer)
    await redraw(query, request, answer, languages(services.translator.languages, say.language))
