"""Handlers for /start, /help, /new, /model and /language."""

from __future__ import annotations

from aiogram import Router
from aiogram.types import CallbackQuery, Message

from bot.admin.progress import taught_by
from bot.handlers.button_taps import acknowledge, redraw
from bot.handlers.commands import Command
from bot.handlers.menu import ADMINS, EVERYBODY, command_list
from bot.handlers.request import Request
from bot.telegram.callback_data import Speak
from bot.telegram.keyboards import language_buttons


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.message.register(start, Command("start"))
    router.message.register(show_help, Command("help"))
    router.message.register(new, Command("new"))
    router.message.register(model, Command("model"))
    router.message.register(language, Command("language"))
    router.callback_query.register(language_chosen, Speak.filter())


async def start(message: Message, request: Request) -> None:
    """Greet the user and show their Telegram user ID."""
    say, user = request.say, request.user
    await request.reply.finish(
        say(
            "Hello, {name}! Send me a picture and ask me about it. You can ask follow-up questions, and send "
            "another picture whenever you like. Your 👍 and 👎 under my answers teach me what you like.\n\n/help "
            "shows what I can do. Your user ID is {id}.",
            name=user.first_name,
            id=user.id,
        )
    )


async def show_help(message: Message, request: Request) -> None:
    """Show what the bot can do for the user, including the admin commands if the user is an admin."""
    services, say = request.services, request.say
    username = (await request.bot.me()).username
    parts = [
        say(
            "Send me a picture, with or without a question, and I'll answer. Then ask follow-up questions: I "
            "remember the picture. Several pictures sent together count as one question."
        ),
        say(
            "🔄 or /retry gives you another answer; ⏹ or /stop stops the one I'm writing. Edit your question and "
            "I'll answer it again."
        ),
        say(
            "👍 or 👎 under an answer tells me what you like; you can change your vote. After 👎, ✍ lets you suggest a "
            "better answer. When I'm retrained, I learn from the answers people like."
        ),
        say.joined(
            say(
                "In groups I answer when you mention me (@{name}), reply to one of my messages or send a command. To "
                "ask about someone else's picture, reply to it and mention me. Telegram's privacy mode hides all other "
                "messages from me, unless I'm a group administrator; then I ignore them.",
                name=username,
            ),
            say("Everyone has their own conversation.")
            if services.settings.chat.group_sessions == "person"
            else say("All members share one conversation."),
        ),
        command_list(EVERYBODY, say),
    ]
    if request.is_admin:
        parts += [say("Admin commands:"), command_list(ADMINS, say)]
    await request.reply.finish("\n\n".join(parts))


async def new(message: Message, request: Request) -> None:
    """Begin a new conversation."""
    await request.services.conversation.restart(request.question())
    await request.reply.finish(request.say("This is a new conversation. Send me a picture!"))


async def model(message: Message, request: Request) -> None:
    """Show the version of the live model, and how many liked answers, votes and users it learned from."""
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


async def language(message: Message, request: Request) -> None:
    """Ask which language the bot should speak, with a button for each language."""
    say = request.say
    await request.reply.finish(
        say("Which language should I speak?"), language_buttons(request.services.translator.languages, say.language)
    )


async def language_chosen(query: CallbackQuery, callback_data: Speak, request: Request) -> None:
    """Store the language that the user chose, and confirm it in that language."""
    services = request.services
    say = services.translator.to(callback_data.code)
    await services.ledger.people.set_language(query.from_user.id, say.language)
    answer = say("I'll speak English with you from now on.")
    await acknowledge(query, answer)
    await redraw(query, request, answer, language_buttons(services.translator.languages, say.language))
