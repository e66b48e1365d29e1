"""Actions of emulated users: sending and editing messages, pressing buttons, reacting, blocking the bot.

As in Telegram, an action creates messages in a chat and updates for the bot. `people_http` offers the
actions over HTTP. Actions that Telegram's apps do not allow raise `BotApiError`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.entities import MAX_CAPTION, MAX_TEXT, formatted, units
from telegram_emulator.world import CallbackQuery, EmulatedChat, User, World

_ALBUM = 10


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture or file to send.

    `kind` says how the file is sent: as a "photo", "raw_photo" (a photo that is not decoded first, even if
    it is damaged), "document" or "sticker".
    """

    data: bytes = field(repr=False)
    name: str = "photo.jpg"
    media_type: str = ""
    kind: str = "photo"


class PersonActions:
    """The actions that emulated users can take."""

    def __init__(self, world: World) -> None:
        self._world = world

    def user(self, person: int) -> User:
        """Return the user with ID `person`.

        Raises:
            BotApiError: The user does not exist.
        """
        if person not in self._world.users:
            raise api_error("user not found")
        return self._world.users[person]

    def chat_of(self, person: int, chat_id: int | None) -> EmulatedChat:
        """Return a chat of the user `person`, by default the private chat with the bot.

        Raises:
            BotApiError: The user or the chat does not exist, or the user is not in the chat.
        """
        chat = self._world.chats.get(self.user(person).id if chat_id is None else chat_id)
        if chat is None or person not in chat.members:
            raise api_error("chat not found")
        return chat

    def opens_topic(self, person: int, name: str, *, chat: int) -> int:
        """Create a forum topic on behalf of the user, and return the topic's number."""
        into = self.chat_of(person, chat)
        private = into.kind == "private" and self._world.bot["has_topics_enabled"]
        if into.kind != "supergroup" and not private:
            raise api_error("the chat is not a forum")
        return self._world.add_topic(into, name, self.user(person).as_user())

    def writes(
        self, person: int, text: str, *, chat: int | None = None, reply_to: int | None = None, topic: int = 0
    ) -> Json:
        """Send a text or a command on behalf of the user, and return the message.

        As in Telegram's apps, a text that is too long for one message is split into several messages; the last
        one is returned.
        """
        into = self.chat_of(person, chat)
        pieces = [piece for piece in map(str.strip, _cut(text)) if piece]
        if not pieces:
            raise api_error("message text is empty")
        for piece in pieces:
            content, entities = formatted(piece)
            message = self._say(person, into, reply_to, topic, text=content, entities=entities)
        return message

    async def sends(
        self,
        person: int,
        attachments: Sequence[Attachment],
        caption: str = "",
        *,
        chat: int | None = None,
        reply_to: int | None = None,
        topic: int = 0,
    ) -> list[Json]:
        """Send a photo, a document, a sticker, or an album of photos or documents, and return the messages.

        An album consists of several messages with the same media group ID.
        """
        into = self.chat_of(person, chat)
        if not 1 <= len(attachments) <= _ALBUM:
            raise api_error("an album can have at most ten pictures or files")
        if len({attachment.kind == "document" for attachment in attachments}) > 1:
            raise api_error("document can't be mixed with other media types")
        text, entities = formatted(caption)
        if any(each.kind == "sticker" for each in attachments) and (text or len(attachments) > 1):
            raise api_error("a sticker must be sent alone")
        if units(text) > MAX_CAPTION:
            raise api_error("message caption is too long")
        contents = [await self._content(attachment) for attachment in attachments]
        group = str(secrets.randbits(62)) if len(contents) > 1 else None
        messages = []
        for index, content in enumerate(contents):
            if index == 0:
                content = {**content, "caption": text, "caption_entities": entities}
            messages.append(self._say(person, into, reply_to, topic, **content, media_group_id=group))
        return messages

    async def _content(self, attachment: Attachment) -> Json:
        files = self._world.files
        match attachment.kind:
            case "document":
                return {"document": files.add_document(attachment.data, attachment.name, attachment.media_type)}
            case "sticker":
                return {"sticker": files.add_sticker(attachment.data, attachment.media_type)}
            case "raw_photo":
                return {"photo": files.add_broken_photo(attachment.data)}
        return {"photo": await files.add_photo(attachment.data)}

    def _say(self, person: int, chat: EmulatedChat, reply_to: int | None, topic: int, **content: object) -> Json:
        user = self.user(person)
        if chat.kind == "private":
            user.blocked, user.started = False, True
        # In a topic, a message without another target replies to the message that created the topic.
        reply = self._world.reply_to(chat, reply_to or topic)
        location = self._world.in_topic(chat, topic or (reply or {}).get("message_thread_id", 0))
        message = self._world.compose(chat, user.as_user(), reply_to_message=reply, **location, **content)
        self._world.post(chat, message)
        if self._world.bot_sees(chat, message):
            self._world.updates.add("message", message)
        elif (
            chat.bot_status == "left"
            and self._world.mentions_bot(message)
            and self._world.bot["supports_guest_queries"]
        ):
            query = str(secrets.randbits(62))
            self._world.guest_queries[query] = message
            self._world.updates.add("guest_message", {**message, "guest_query_id": query})
        return message

    def edits(self, person: int, message_id: int, text: str, *, chat: int | None = None) -> Json:
        """Change the text or the caption of the user's own message, and return the edited message."""
        into = self.chat_of(person, chat)
        message = into.messages.get(message_id)
        if message is None or message["from"]["id"] != person:
            raise api_error("message can't be edited")
        content, entities = formatted(text)
        field_name, entities_name = ("text", "entities") if "text" in message else ("caption", "caption_entities")
        changed = {**message, field_name: content, entities_name: entities, "edit_date": int(time.time())}
        changed = {name: value for name, value in changed.items() if value not in ([], "")}
        self._world.replace(into, changed)
        if self._world.bot_sees(into, changed):
            self._world.updates.add("edited_message", changed)
        return changed

    def presses(self, person: int, message_id: int, data: str, *, chat: int | None = None) -> str:
        """Press the inline button whose callback data is `data`, and return the ID of the callback query."""
        into = self.chat_of(person, chat)
        message = into.messages.get(message_id)
        rows = (message or {}).get("reply_markup", {}).get("inline_keyboard", [])
        if message is None or not any(button.get("callback_data") == data for row in rows for button in row):
            raise api_error("the message has no such button")
        query = str(secrets.randbits(62))
        self._world.callbacks[query] = CallbackQuery(query, person, into.id, message_id, self._world.flood.clock())
        user = self.user(person).as_user()
        inline = next((name for name, at in self._world.inline.items() if at == (into.id, message_id)), None)
        tapped = {"inline_message_id": inline} if inline else {"message": message}
        payload = {"id": query, "from": user, **tapped, "chat_instance": str(into.id), "data": data}
        self._world.updates.add("callback_query", payload)
        return query

    def reacts(self, person: int, message_id: int, emoji: str, *, chat: int | None = None) -> None:
        """React to a message with `emoji`, or remove the reaction if `emoji` is empty."""
        into = self.chat_of(person, chat)
        if message_id not in into.messages:
            raise api_error("message not found")
        before = into.reactions.get((message_id, person), "")
        if before == emoji:
            return
        into.reactions[message_id, person] = emoji
        self._world.events.publish("reaction", into.id, message_id=message_id, person=person, emoji=emoji)
        if into.kind == "private" or into.bot_status == "administrator":
            self._world.updates.add(
                "message_reaction",
                {
                    "chat": self._world.as_chat(into),
                    "message_id": message_id,
                    "user": self.user(person).as_user(),
                    "date": int(time.time()),
                    "old_reaction": [{"type": "emoji", "emoji": before}] if before else [],
                    "new_reaction": [{"type": "emoji", "emoji": emoji}] if emoji else [],
                },
            )

    def blocks(self, person: int, *, blocked: bool) -> None:
        """Make the user block or unblock the bot."""
        self.user(person).blocked = blocked


def _cut(text: str) -> Iterator[str]:
    """Yield pieces of `text` of at most `MAX_TEXT` UTF-16 units, split after a space or line break if possible.

    Only a space or line break in the second half of a piece is used.
    """
    while units(text) > MAX_TEXT:
        end = MAX_TEXT
        while units(text[:end]) > MAX_TEXT:
            end -= units(text[:end]) - MAX_TEXT + 1 >> 1 or 1
        blank = max(text.rfind(" ", end // 2, end), text.rfind("\n", end // 2, end))
        end = blank + 1 if blank > 0 else end
        yield text[:end]
        text = text[end:]
    yield text
