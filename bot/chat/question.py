"""A question to the model: who asks it, where, in what words, and about which pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiogram.types import Document, ExternalReplyInfo, Message, PhotoSize, Sticker

from bot.updates.ordering import command_of
from inference.messages import Picture
from storage.chat_records import Exchange

PictureFile = PhotoSize | Document | Sticker
"""A picture as Telegram announces it, before it is downloaded."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
"""File name endings of the formats that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, from its admission to its record.

    Attributes:
        update: Id of the Telegram update that asks for the answer.
        chat: Id of the chat.
        topic: Id of the forum topic, or 0 if there is none.
        asker: User id of the person who asks.
        received: When the update was stored, in UTC seconds.
        message: Id of the message that asks, or 0 for a button.
        messages: The messages with the text, which may be edited until it is answered. If empty, `text` is final.
        text: The words of the question.
        files: Pictures that are still to be downloaded.
        sender: User id of the person who sent `files`.
        pictures: Pictures that are stored already.
        replaces: The earlier exchange whose place the new one takes, because it was edited or regenerated.
        models: The two models whose answers are to be compared, or empty if one model is to answer.
    """

    update: int
    chat: int
    topic: int
    asker: int
    received: float
    message: int = 0
    messages: tuple[Message, ...] = ()
    text: str = ""
    files: tuple[PictureFile, ...] = ()
    sender: int = 0
    pictures: tuple[Picture, ...] = ()
    replaces: Exchange | None = None
    models: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[float, int]:
        """The sort key by which questions are ordered in time."""
        return self.received, self.update


def picture_in(message: Message | ExternalReplyInfo) -> PictureFile | None:
    """Return a message's picture (of a photo, its largest size), or None. Moving stickers are not pictures."""
    if message.photo:
        return max(message.photo, key=lambda size: size.width * size.height)
    if message.sticker:
        return None if message.sticker.is_animated or message.sticker.is_video else message.sticker
    return message.document if message.document and _is_named_a_picture(message.document) else None


def starts_over(message: Message, username: str) -> bool:
    """Return whether a picture's caption begins with /new, addressed to this bot or to no bot in particular."""
    caption = message.caption or ""
    if command_of(caption) != "new":
        return False
    return caption.split(maxsplit=1)[0].partition("@")[2].lower() in ("", username.lower())


def text_of(messages: Sequence[Message], username: str) -> str:
    """Return the question in messages: texts and captions without a leading /new or, in groups, the bot's name."""
    texts = [each.text or each.caption or "" for each in messages]
    if starts_over(messages[0], username):
        texts[0] = "".join(texts[0].split(maxsplit=1)[1:])
    text = "\n".join(part for part in texts if part.strip())
    if messages[0].chat.type != "private":
        text = re.sub(rf"@{username}\b", "", text, flags=re.IGNORECASE)
    return text.strip()


def _is_named_a_picture(document: Document) -> bool:
    name = (document.file_name or "").lower()
    return (document.mime_type or "").startswith("image/") or name.endswith(SUFFIXES)
