"""The emulated world: the bot, people, chats, their messages and what the bot may know of them.

Messages are Bot API `Message` objects as dicts and are replaced, never changed, so that an event or an update keeps
what it was made of. Knows who sees what; leaves what a bot can do to `sending`, `editing` and `account`, and what a
person can do to `people`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from telegram_emulator.events import Events
from telegram_emulator.files import Files
from telegram_emulator.flood import Flood
from telegram_emulator.refusals import Json, refused
from telegram_emulator.updates import Updates

_EPOCH_2026 = 1_767_225_600
_FIRST_GROUP = -1_001_000_000_000


def fresh_number() -> int:
    """Where ids begin: above those of earlier emulators, because a bot remembers the ids that it has seen."""
    return int(time.time() - _EPOCH_2026) * 10


@dataclass(slots=True)
class User:
    """A person. `admin` and `sample` are for the chat page only; `started` means that the bot may write to them."""

    id: int
    name: str
    username: str = ""
    language: str = "en"
    admin: bool = False
    sample: bool = False
    started: bool = False
    blocked: bool = False

    def as_user(self) -> Json:
        """A Bot API `User`."""
        user: Json = {"id": self.id, "is_bot": False, "first_name": self.name}
        if self.username:
            user["username"] = self.username
        if self.language:
            user["language_code"] = self.language
        return user


@dataclass(slots=True)
class Counts:
    """How many messages the bot sent, edited and deleted in a chat."""

    sends: int = 0
    edits: int = 0
    deletes: int = 0


@dataclass(slots=True)
class Chat:
    """A private chat (its id is the person's) or a group. `privacy` is the bot's privacy mode in a group; one with
    `topics` is a forum: each is known by the number of the message that made it.
    """

    id: int
    kind: str
    title: str = ""
    members: set[int] = field(default_factory=set)
    bot_status: str = "member"  # or administrator, left, kicked
    privacy: bool = True
    messages: dict[int, Json] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    reactions: dict[tuple[int, int], str] = field(default_factory=dict)  # emoji by message and person
    topics: set[int] = field(default_factory=set)


@dataclass(slots=True)
class CallbackQuery:
    """A pressed button that waits for its answer; `asked` is a time of the monotonic clock."""

    id: str
    person: int
    chat: int
    message: int
    asked: float


class World:
    """Everything there is. `first_id` numbers the first update and the first message."""

    def __init__(self, bot_id: int, bot_name: str, bot_username: str, first_id: int, flood: Flood) -> None:
        self.bot: Json = {
            "id": bot_id,
            "is_bot": True,
            "first_name": bot_name,
            "username": bot_username,
        }
        self.users: dict[int, User] = {}
        self.chats: dict[int, Chat] = {}
        self.files = Files()
        self.events = Events()
        self.updates = Updates(first_id)
        self.flood = flood
        self.callbacks: dict[str, CallbackQuery] = {}
        self.commands: dict[tuple[str, int, int, str], list[Json]] = {}
        self._next_message = first_id
        self._next_person = 1001
        self._next_group = _FIRST_GROUP

    def add_user(
        self, user_id: int | None, name: str, *, username: str = "", language: str = "en", **marks: bool
    ) -> User:
        """Create a person with their private chat; an id that exists is returned with the new name and language."""
        if user_id is None:
            while self._next_person in self.users:
                self._next_person += 1
            user_id = self._next_person
        user = self.users.get(user_id)
        if user is None:
            user = User(user_id, name, username, language, **marks)
            self.users[user_id] = user
            self.chats[user_id] = Chat(user_id, "private", members={user_id})
        else:
            user.name, user.language = name, language
        self.events.publish("person", None, person=user_id)
        return user

    def add_group(
        self, title: str, members: Iterable[int], *, kind: str = "supergroup", admin: bool = False, privacy: bool = True
    ) -> Chat:
        """Create a group that the bot is a member or an administrator of."""
        self._next_group -= 1
        status = "administrator" if admin else "member"
        chat = Chat(self._next_group, kind, title, set(members), status, privacy)
        self.chats[chat.id] = chat
        self.events.publish("chat", None, chat_id=chat.id)
        return chat

    def add_topic(self, chat: Chat, name: str, creator: Json) -> int:
        """Make a forum topic in a supergroup, which becomes a forum with its first; return the topic's number."""
        number = self._next_message
        chat.topics.add(number)
        made = {"name": name, "icon_color": 0x6FB9F0}
        message = self.compose(chat, creator, **self.in_topic(chat, number), forum_topic_created=made)
        self.post(chat, message)
        return number

    def in_topic(self, chat: Chat, topic: int) -> Json:
        """The fields of a message in a forum topic, none for 0. Raises `Refused` for a topic that is not there."""
        if not topic:
            return {}
        if topic not in chat.topics:
            raise refused("message thread not found")
        return {"message_thread_id": topic, "is_topic_message": True}

    def as_chat(self, chat: Chat) -> Json:
        """A Bot API `Chat`."""
        if chat.kind != "private":
            group: Json = {"id": chat.id, "type": chat.kind, "title": chat.title}
            return {**group, "is_forum": True} if chat.topics else group
        user = self.users[chat.id]
        described: Json = {"id": chat.id, "type": "private", "first_name": user.name}
        if user.username:
            described["username"] = user.username
        return described

    def chat_for_bot(self, chat_id: str, *, write: bool = True) -> Chat:
        """The chat that a call names by id or @username. Raises `Refused`, also when the bot may not `write` there."""
        if not chat_id:
            raise refused("chat_id is empty")
        chat: Chat | None = None
        if chat_id.startswith("@"):
            name = chat_id[1:].lower()
            chat = next((self.chats[u.id] for u in self.users.values() if u.username.lower() == name), None)
        elif chat_id.removeprefix("-").isdigit():
            chat = self.chats.get(int(chat_id))
        if chat is None:
            raise refused("chat not found")
        if chat.kind == "private":
            user = self.users[chat.id]
            if user.blocked and write:
                raise refused("bot was blocked by the user", 403)
            if not user.started:
                if any(user.id in other.members for other in self.chats.values() if other.kind != "private"):
                    raise refused("bot can't initiate conversation with a user", 403)
                raise refused("chat not found")
        elif chat.bot_status == "kicked":
            raise refused(f"bot was kicked from the {chat.kind} chat", 403)
        elif chat.bot_status == "left":
            raise refused(f"bot is not a member of the {chat.kind} chat", 403)
        return chat

    def compose(self, chat: Chat, sender: Json, **content: object) -> Json:
        """A new message in a chat, numbered and dated; not yet seen by anybody."""
        number = self._next_message
        self._next_message += 1
        return {
            "message_id": number,
            "from": sender,
            "chat": self.as_chat(chat),
            "date": int(time.time()),
            **{name: value for name, value in content.items() if value not in (None, [], {}, "")},
        }

    def post(self, chat: Chat, message: Json) -> Json:
        """Put a message into its chat for all who are there to see."""
        chat.messages[message["message_id"]] = message
        self.events.publish("message", chat.id, message=message)
        return message

    def replace(self, chat: Chat, message: Json) -> Json:
        """Put an edited message in the place of the former one."""
        chat.messages[message["message_id"]] = message
        self.events.publish("edited", chat.id, message=message)
        return message

    def remove(self, chat: Chat, message_id: int) -> None:
        """Take a message out of its chat."""
        del chat.messages[message_id]
        self.events.publish("deleted", chat.id, message_id=message_id)

    def reply_to(self, chat: Chat, message_id: int) -> Json | None:
        """The message that a new one replies to, without what it replied to itself, as Telegram nests it."""
        original = chat.messages.get(message_id)
        if original is None:
            return None
        return {name: value for name, value in original.items() if name != "reply_to_message"}

    def bot_sees(self, chat: Chat, message: Json) -> bool:
        """Whether the bot gets a person's message: always in private; in groups its privacy mode and rights decide
        (core.telegram.org/bots/features#privacy-mode)."""
        if chat.kind == "private" or not chat.privacy or chat.bot_status == "administrator":
            return True
        if chat.bot_status != "member":
            return False
        text = message.get("text") or message.get("caption") or ""
        name = f"@{self.bot['username']}".lower()
        if name in text.lower():
            return True
        if text.startswith("/"):
            return "@" not in text.split(maxsplit=1)[0]
        replied = message.get("reply_to_message")
        return bool(replied and replied["from"]["id"] == self.bot["id"])
