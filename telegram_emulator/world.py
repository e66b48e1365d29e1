"""The emulator's state (the bot, users, chats and messages) and the rules for what the bot can see.

Messages are Bot API `Message` objects as dicts. They are replaced, never modified, so that an event or
an update keeps its content. `sending`, `editing` and `bot_account` implement what the bot can do;
`person_actions` implements what users can do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.event_log import EventLog
from telegram_emulator.file_store import FileStore
from telegram_emulator.flood_control import FloodControl
from telegram_emulator.update_queue import UpdateQueue
from telegram_emulator.webhook import Webhook

_EPOCH_2026 = 1_767_225_600
_FIRST_GROUP = -1_001_000_000_000


def fresh_number() -> int:
    """Return a first ID above all IDs of earlier emulators, because a bot remembers the IDs it has seen."""
    return int(time.time() - _EPOCH_2026) * 10


@dataclass(slots=True)
class User:
    """An emulated Telegram user.

    `admin` and `sample` are flags for the chat page. `started` is true once the bot may write to the user.
    """

    id: int
    name: str
    language: str = "en"
    admin: bool = False
    sample: bool = False
    started: bool = False
    blocked: bool = False

    def as_user(self) -> Json:
        """Return the user as a Bot API `User` object."""
        user: Json = {"id": self.id, "is_bot": False, "first_name": self.name}
        if self.language:
            user["language_code"] = self.language
        return user


@dataclass(slots=True)
class CallCounts:
    """Counts of the messages that the bot sent, edited and deleted in a chat."""

    sends: int = 0
    edits: int = 0
    deletes: int = 0


@dataclass(slots=True)
class EmulatedChat:
    """A group, or a private chat, which has the same ID as its user.

    `privacy` is the bot's privacy mode in a group. A group with `topics` is a forum; the number of a topic
    is the ID of the message that created the topic.
    """

    id: int
    kind: str
    title: str = ""
    members: set[int] = field(default_factory=set)
    bot_status: str = "member"  # or administrator, left, kicked
    privacy: bool = True
    messages: dict[int, Json] = field(default_factory=dict)
    counts: CallCounts = field(default_factory=CallCounts)
    reactions: dict[tuple[int, int], str] = field(default_factory=dict)  # emoji by message and person
    topics: set[int] = field(default_factory=set)
    ephemeral: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class CallbackQuery:
    """A button press that the bot has not answered yet.

    `pressed` is the time of the press on the monotonic clock.
    """

    id: str
    person: int
    chat: int
    message: int
    pressed: float


class CommandList(NamedTuple):
    """The key of a list of bot commands: scope, ID of the scope's chat (0 if it has none) and language."""

    scope: str
    chat: int
    language: str


class World:
    """The emulator's complete state; the first update and the first message both get the ID `first_id`."""

    def __init__(self, bot_id: int, first_id: int, flood: FloodControl) -> None:
        self.bot: Json = {
            "id": bot_id,
            "is_bot": True,
            "first_name": "thumbtune",
            "username": "thumbtune_bot",
            "can_join_groups": True,
            "supports_guest_queries": True,
            "has_topics_enabled": True,
        }
        self.users: dict[int, User] = {}
        self.chats: dict[int, EmulatedChat] = {}
        self.files = FileStore()
        self.events = EventLog()
        self.updates = UpdateQueue(first_id)
        self.webhook = Webhook(self.updates)
        self.flood = flood
        self.callbacks: dict[str, CallbackQuery] = {}
        self.guest_queries: dict[str, Json] = {}  # unanswered guest messages
        self.knows_ephemeral = True  # servers before Bot API 10.3 ignore ephemeral_message_parameters
        self.inline: dict[str, tuple[int, int]] = {}  # chat and number of each message that the bot sent as a guest
        self.commands: dict[CommandList, list[Json]] = {}
        self._next_message = first_id
        self._next_group = _FIRST_GROUP

    def add_user(self, user_id: int, name: str, language: str = "en", **marks: bool) -> User:
        """Create a user and their private chat, or update the name and language of an existing user."""
        user = self.users.get(user_id)
        if user is None:
            user = User(user_id, name, language, **marks)
            self.users[user_id] = user
            self.chats[user_id] = EmulatedChat(user_id, "private", members={user_id})
        else:
            user.name, user.language = name, language
        self.events.publish("person", None, person=user_id)
        return user

    def add_group(
        self,
        title: str,
        members: Iterable[int],
        *,
        kind: str = "supergroup",
        admin: bool = False,
        privacy: bool = True,
        member: bool = True,
    ) -> EmulatedChat:
        """Create a group; the bot is an administrator if `admin` is true, and not in it if `member` is false."""
        self._next_group -= 1
        status = "left" if not member else "administrator" if admin else "member"
        chat = EmulatedChat(self._next_group, kind, title, set(members), status, privacy)
        self.chats[chat.id] = chat
        self.events.publish("chat", None, chat_id=chat.id)
        return chat

    def add_topic(self, chat: EmulatedChat, name: str, creator: Json) -> int:
        """Create a forum topic in a supergroup or a private chat and return the topic's number.

        The first topic makes a group a forum.
        """
        number = self._next_message
        chat.topics.add(number)
        created = {"name": name, "icon_color": 0x6FB9F0}
        message = self.compose(chat, creator, **self.in_topic(chat, number), forum_topic_created=created)
        self.post(chat, message)
        return number

    def in_topic(self, chat: EmulatedChat, topic: int) -> Json:
        """Return the fields that place a message in a forum topic; there are none if `topic` is 0.

        Raises:
            BotApiError: The topic does not exist.
        """
        if not topic:
            return {}
        if topic not in chat.topics:
            raise api_error("message thread not found")
        return {"message_thread_id": topic, "is_topic_message": True}

    def as_chat(self, chat: EmulatedChat) -> Json:
        """Return the chat as a Bot API `Chat` object."""
        if chat.kind != "private":
            group: Json = {"id": chat.id, "type": chat.kind, "title": chat.title}
            return {**group, "is_forum": True} if chat.topics else group
        user = self.users[chat.id]
        return {"id": chat.id, "type": "private", "first_name": user.name}

    def chat_for_bot(self, chat_id: str, *, write: bool = True) -> EmulatedChat:
        """Return the chat with ID `chat_id`, if the bot may use it.

        Raises:
            BotApiError: The chat does not exist, the bot may not use it, or `write` is true and the user has
                blocked the bot.
        """
        if not chat_id:
            raise api_error("chat_id is empty")
        chat = self.chats.get(int(chat_id)) if chat_id.removeprefix("-").isdigit() else None
        if chat is None:
            raise api_error("chat not found")
        if chat.kind == "private":
            user = self.users[chat.id]
            if user.blocked and write:
                raise api_error("bot was blocked by the user", 403)
            if not user.started:
                if any(user.id in other.members for other in self.chats.values() if other.kind != "private"):
                    raise api_error("bot can't initiate conversation with a user", 403)
                raise api_error("chat not found")
        elif chat.bot_status == "kicked":
            raise api_error(f"bot was kicked from the {chat.kind} chat", 403)
        return chat

    def compose(self, chat: EmulatedChat, sender: Json, **content: object) -> Json:
        """Return a new message for `chat`, with an ID and a date, without posting it."""
        number = self._next_message
        self._next_message += 1
        return {
            "message_id": number,
            "from": sender,
            "chat": self.as_chat(chat),
            "date": int(time.time()),
            **{name: value for name, value in content.items() if value not in (None, [], {}, "")},
        }

    def post(self, chat: EmulatedChat, message: Json) -> None:
        """Add a message to its chat and publish an event."""
        chat.messages[message["message_id"]] = message
        self.events.publish("message", chat.id, message=message)

    def replace(self, chat: EmulatedChat, message: Json) -> Json:
        """Replace the earlier version of `message` in its chat, publish an event, and return `message`."""
        chat.messages[message["message_id"]] = message
        self.events.publish("edited", chat.id, message=message)
        return message

    def remove(self, chat: EmulatedChat, message_id: int) -> None:
        """Delete a message from its chat and publish an event."""
        del chat.messages[message_id]
        self.events.publish("deleted", chat.id, message_id=message_id)

    def reply_to(self, chat: EmulatedChat, message_id: int) -> Json | None:
        """Return the message that a new message replies to, or None if there is no such message.

        The returned message has no `reply_to_message` of its own, because Telegram nests replies only one level
        deep.
        """
        original = chat.messages.get(message_id)
        if original is None:
            return None
        return {name: value for name, value in original.items() if name != "reply_to_message"}

    def mentions_bot(self, message: Json) -> bool:
        """Return whether a message mentions the bot."""
        text = message.get("text") or message.get("caption") or ""
        return f"@{self.bot['username']}".lower() in text.lower()

    def bot_sees(self, chat: EmulatedChat, message: Json) -> bool:
        """Return whether the bot receives a user's message.

        The bot receives all messages in private chats; in groups, the bot's privacy mode and rights decide
        (core.telegram.org/bots/features#privacy-mode).
        """
        if chat.bot_status not in ("member", "administrator"):
            return False
        if chat.kind == "private" or not chat.privacy or chat.bot_status == "administrator":
            return True
        if self.mentions_bot(message):
            return True
        text = message.get("text") or message.get("caption") or ""
        if text.startswith("/"):
            return "@" not in text.split(maxsplit=1)[0]
        replied = message.get("reply_to_message")
        return bool(replied and replied["from"]["id"] == self.bot["id"])
