"""The request context: the update being handled, and the services that handlers use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiogram import BaseMiddleware, Bot
from aiogram.types import Chat as TelegramChat
from aiogram.types import Message, TelegramObject, Update, User
from cachetools import LRUCache

from bot.admin.canary_trial import Trials
from bot.admin.erasure import Erasure
from bot.admin.model_switch import ModelSwitch
from bot.admin.monitoring import Monitoring
from bot.admin.notifications import Notifications
from bot.admin.run_manager import RunManager
from bot.chat.conversation import Conversation
from bot.chat.in_flight import InFlight
from bot.chat.picture_receiver import PictureReceiver
from bot.chat.question import Question
from bot.chat.responder import Responder
from bot.config import Settings
from bot.i18n import Say, Translator
from bot.live_settings import LiveSettings
from bot.telegram.button_updates import RatingButtons
from bot.telegram.guest_reply import reply_type
from bot.telegram.place import Place
from bot.telegram.reply import Reply
from bot.updates.addressing import spoken_to
from bot.updates.inbox_processor import Delivery
from bot.updates.staleness import StaleQuestions
from storage.chat_records import Chat, Exchange, Person
from storage.errors import UnknownRecord
from storage.guests import GUESTS
from storage.learning_records import Actor
from storage.ledger import Ledger

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that handlers use; every update gets the same objects."""

    live_settings: LiveSettings
    ledger: Ledger
    translator: Translator
    runs: RunManager
    trials: Trials
    switch: ModelSwitch
    monitoring: Monitoring
    erasure: Erasure
    conversation: Conversation
    pictures: PictureReceiver
    in_flight: InFlight
    responder: Responder
    stale_questions: StaleQuestions
    buttons: RatingButtons
    notices: Notifications

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.live_settings.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An update that is being handled.

    Attributes:
        services: The services that the handler uses.
        bot: The bot that received the update.
        delivery: The update's ID, time of arrival and attempt number.
        user: The user who sent the update.
        person: The ledger's record of the user, or None if there is none yet.
        blocked: Whether an operator has blocked the user on the web page.
        messages: The message, or its whole media group with the handled message first. Empty for taps and
            reactions.
        edited: Whether the update is an edit of an earlier message.
        say: The translator into the user's language.
        reply: The reply to the update, including the messages that an earlier attempt sent.
    """

    services: Services
    bot: Bot
    delivery: Delivery
    user: User
    person: Person | None
    blocked: bool
    messages: tuple[Message, ...]
    edited: bool
    say: Say
    reply: Reply

    @property
    def is_admin(self) -> bool:
        """Whether an admin sent the update."""
        return self.user.id in self.services.settings.telegram.admins

    @property
    def actor(self) -> Actor:
        """The user as the `Actor` of a model change."""
        return Actor(self.user.full_name, self.user.id)

    def question(self, *, text: str = "", replaces: Exchange | None = None) -> Question:
        """Return a `Question` asked by the user in the chat of the reply."""
        place = self.reply.place
        return Question(
            update=self.delivery.update,
            chat=place.chat,
            topic=place.topic or 0,
            asker=self.user.id,
            received=self.delivery.received,
            text=text,
            replaces=replaces,
        )

    async def whisper(self, text: str) -> None:
        """Reply with text that concerns only the user; in a group, hide it from other members if possible."""
        await self.reply.whisper(text, self.user.id)

    async def show_recorded(self) -> bool:
        """Show the answer recorded by an interrupted earlier attempt, if any, and return whether there is one."""
        if self.delivery.attempt == 1:
            return False
        recorded = await self.services.ledger.exchanges.for_update(self.delivery.update)
        if recorded:
            await self.services.responder.show(recorded, self.reply, self.say)
        return recorded is not None


class RequestContext(BaseMiddleware):
    """Middleware that builds the `request` for each update.

    An update whose reply is already finished is not handled again.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Call `handler` with the `request` of an update."""
        assert isinstance(event, Update)
        services, bot, delivery = self._services, data["bot"], data["delivery"]
        guest = event.guest_message
        user: User | None = guest.from_user if guest else data.get("event_from_user")
        if user is None:
            return None  # a channel's post, an anonymous reaction or a damaged update has no user to reply to
        if guest and (user.is_bot or not services.settings.chat.guests):
            return None
        message = event.message or event.edited_message or guest
        place = _place(message or (event.callback_query and event.callback_query.message), data.get("event_chat"), user)
        reply = reply_type(place)(bot, services.ledger, delivery.update, place)
        if delivery.attempt > 1:
            reply = await reply_type(place).open(bot, services.ledger, delivery.update, place)
            if reply.finished:
                return None
        person, blocked = await services.ledger.people.get_with_block(user.id)
        request = Request(
            services=services,
            bot=bot,
            delivery=delivery,
            user=user,
            person=person,
            blocked=blocked,
            messages=delivery.album or ((message,) if message else ()),
            edited=event.edited_message is not None,
            say=services.translator.for_person(person, user.language_code),
            reply=reply,
        )
        return await handler(event, data | {"request": request})


class SenderRecords(BaseMiddleware):
    """Middleware that records who wrote to the bot, and in which chat.

    Users who only write to each other in a group are not recorded.
    """

    def __init__(self) -> None:
        self._seen: LRUCache[tuple[int, int], tuple[Person, Chat]] = LRUCache(REMEMBERED)
        """The last state of each user in each chat, by their IDs."""

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Record the sender and the chat, then call `handler`."""
        request: Request = data["request"]
        chat: TelegramChat | None = data.get("event_chat")
        if request.reply.place.guest:
            await self._record(request, Chat(GUESTS, "guest"))
        elif chat and (not request.messages or await spoken_to(request.messages, request.bot)):
            await self._record(request, Chat(chat.id, chat.type, chat.title or ""))
        return await handler(event, data)

    async def _record(self, request: Request, chat: Chat) -> None:
        """Save the sender and the chat if either is new or has changed, which is rare."""
        user = request.user
        person = Person(user.id, user.full_name, user.language_code)
        outdated = request.person is None or request.person.name != user.full_name
        if outdated or self._seen.get((user.id, chat.id)) != (person, chat):
            try:
                await request.services.ledger.people.save(person, chat, update=request.delivery.update)
            except UnknownRecord:  # the person's data was deleted in the meantime
                return
        self._seen[user.id, chat.id] = (person, chat)


def _place(message: object, chat: TelegramChat | None, user: User) -> Place:
    """Return the destination of the reply to an update.

    If a tapped message is old or deleted, Telegram may withhold it from the bot; the destination is then
    just the chat.
    """
    return Place.of(message) if isinstance(message, Message) else Place(chat.id if chat else user.id)
