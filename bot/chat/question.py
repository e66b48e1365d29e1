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
"""A picture as Telegram describes it, before the file is downloaded."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
"""File name endings of the formats that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, from the moment it is accepted until its exchange is recorded.

    Attributes:
        update: ID of the Telegram update that asks for the answer.
        chat: ID of the chat.
        topic: ID of the forum topic, or 0 if there is none.
        asker: ID of the user who asks.
        received: When the update was stored, in seconds since the Unix epoch.
        message: ID of the message with the question, or 0 if a button was tapped.
        messages: The messages with the text, which may be edited until the question is answered. If empty,
            `text` is final.
        text: The text of the question.
        files: Pictures that are still to be downloaded.
        sender: ID of the user who sent `files`.
        pictures: Pictures that are already stored.
        replaces: The earlier exchange that the new one replaces, because the question was edited or the
            answer regenerated.
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
        """The sort key that puts questions in chronological order."""
        return self.received, self.update


def picture_in(message: Message | ExternalReplyInfo) -> PictureFile | None:
    """Return the picture file of a message, or None if it has none.

    For a photo, the largest size is returned. Animated and video stickers do not count as pictures.
    """
    if message.photo:
        return max(message.photo, key=lambda size: size.width * size.height)
    if message.sticker:
        return None if message.sticker.is_animated or message.sticker.is_video else message.sticker
    return message.document if message.document and _is_named_a_picture(message.document) else None


def starts_over(message: Message, username: str) -> bool:
    """Return whether a message's caption begins with /new, addressed to the bot `username` or to no bot."""
    caption = message.caption or ""
    if command_of(caption) != "new":
        return False
    return caption.split(maxsplit=1)[0].partition("@")[2].lower() in ("", username.lower())


def text_of(messages: Sequence[Message], username: str) -> str:
    """Return the question in `messages`, joined from their texts and captions.

    A leading /new is removed and, except in the private chat with the bot, so are mentions of the bot.
    """
    texts = [each.text or each.caption or "" for each in messages]
    if starts_over(messages[0], username):
        texts[0] = "".join(texts[0].split(maxsplit=1)[1:])
    text = "\n".join(part for part in texts if part.strip())
    if messages[0].chat.type != "private" or messages[0].guest_query_id:
        text = re.sub(rf"@{username}\b", "", text, flags=re.IGNORECASE)
    return text.strip()


def _is_named_a_picture(document: Document) -> bool:
    name = (document.file_name or "").lower()
    return (document.mime_type or "").startswith("image/") or name.endswith(SUFFIXES)
