"""/start, /help, /new, /language: getting to know the bot."""

from __future__ import annotations

from aiogram import Bot, Router
from aiogram.types import CallbackQuery, Message, User

from bot.admin.protocol import AdminActions
from bot.handlers.callbacks import acknowledge, redraw
from bot.handlers.commands import Command
from bot.handlers.menu import EVERYBODY, admins_commands, command_list
from bot.i18n import Say, Translator
from bot.settings import BotSettings
from bot.telegram.keyboards import Speak, languages
from bot.telegram.outbox import Reply
from storage.ledger import Ledger


def router() -> Router:
    """The handlers of this module."""
    basics = Router(name="basics")
    basics.message.register(start, Command("start"))
    basics.message.register(show_help, Command("help"))
    basics.message.register(new, Command("new"))
    basics.message.register(language, Command("language"))
    basics.callback_query.register(language_chosen, Speak.filter())
    return basics


async def start(message: Message, event_from_user: User, reply: Reply, say: Say) -> None:
    """Greet, and tell people their id."""
    await reply.finish(
        say(
            "Hello, {name}! Send me a picture and ask me about it. You can go on asking about it, and send another one "
            "whenever you like. The thumbs under my answers teach me what you like.\n\n/help shows what I can do. Your "
            "user id is {id}.",
            name=event_from_user.first_name,
            id=event_from_user.id,
        )
    )


async def show_help(
    message: Message,
    event_from_user: User,
    bot: Bot,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    admin: AdminActions,
) -> None:
    """Say what the bot can do for this person."""
    me = await bot.me()
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
            name=me.username,
        )
        + " "
        + (
            say("Each person has a conversation of their own.")
            if settings.chat.group_sessions == "person"
            else say("All members have one conversation together.")
        ),
        command_list(EVERYBODY, say),
    ]
    if event_from_user.id in settings.telegram.admins:
        parts += [say("You are one of my admins:"), command_list(admins_commands(len(admin.nodes())), say)]
    await reply.finish("\n\n".join(parts))


async def new(
    message: Message, event_from_user: User, reply: Reply, say: Say, ledger: Ledger, settings: BotSettings
) -> None:
    """Begin another conversation. On a replay perhaps once more: an empty one is as good as another."""
    talker = settings.chat.talker(message.chat.id, event_from_user.id)
    await ledger.sessions.restart(message.chat.id, talker, reply.place.topic or 0)
    await reply.finish(say("A fresh start: I have put our conversation aside. Send me a picture!"))


async def language(message: Message, reply: Reply, say: Say, translator: Translator) -> None:
    """Offer the languages."""
    await reply.finish(say("Which language shall I speak with you?"), languages(translator.languages, say.language))


async def language_chosen(
    query: CallbackQuery, callback_data: Speak, bot: Bot, ledger: Ledger, translator: Translator
) -> None:
    """Remember the choice, in words of the chosen language."""
    say = translator.to(callback_data.code)
    await ledger.people.set_language(query.from_user.id, say.language)
    answer = say("I speak English with you from now on.")
    await acknowledge(query, answer)
    await redraw(query, bot, answer, languages(translator.languages, say.language))
