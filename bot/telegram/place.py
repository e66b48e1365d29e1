"""The destination of a reply: its chat and topic, and the message that it answers."""

from __future__ import annotations

from dataclasses import dataclass

from aiogram.types import Message, ReplyParameters

from storage.guests import GUESTS


@dataclass(frozen=True, slots=True)
class Place:
    """The destination of a reply.

    Attributes:
        chat: ID of the chat.
        topic: ID of the forum topic, or None.
        question: ID of the message being answered, or 0 if unknown.
        quotes: Whether the reply quotes the question, as it does in groups.
        guest: ID of the guest query that the reply answers; empty if the bot is a member of the chat.
    """

    chat: int
    topic: int | None = None
    question: int = 0
    quotes: bool = False
    guest: str = ""

    @classmethod
    def of(cls, message: Message) -> Place:
        """Return the destination of a reply to `message`."""
        if message.guest_query_id:
            return cls(chat=GUESTS, guest=message.guest_query_id)
        return cls(
            chat=message.chat.id,
            topic=message.message_thread_id if message.is_topic_message else None,
            question=message.message_id,
            quotes=message.chat.type != "private",
        )

    @property
    def in_group(self) -> bool:
        """Whether the reply goes to a group."""
        return self.chat < 0  # the ID of a private chat is its user's, and positive

    def quoted(self) -> ReplyParameters | None:
        """Return the parameters that make a message quote the question, or None if it must not."""
        quoted = ReplyParameters(message_id=self.question, allow_sending_without_reply=True)
        elsewhere = self.topic is not None and not self.in_group  # the question may be outside the topic
        return quoted if self.quotes and not elsewhere else None
