"""Records about chats: users, pictures, exchanges, updates and replies.

Times are UTC seconds since the epoch. IDs of users, chats, updates and messages are Telegram's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Person:
    """A Telegram user.

    Attributes:
        language: The language chosen with /language; None to follow `client_language`.
        opted_out: Whether the user's questions and votes are excluded from training.
        wants_notes: Whether the user is notified when a model that learned from the user's votes goes live.
        teaches_as_guest: Whether the bot may learn from the user's questions in chats where it is a guest.
    """

    id: int
    name: str = ""
    client_language: str | None = None
    language: str | None = None
    opted_out: bool = False
    wants_notes: bool = False
    teaches_as_guest: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """A Telegram chat.

    Attributes:
        kind: One of "private", "group", "supergroup" or "channel", or "guest" for the chats in which the bot is a
            guest.
    """

    id: int
    kind: str = "private"
    title: str = ""


class PictureState(StrEnum):
    """The state of a picture's re-encoding.

    RAW pictures were stored unchanged by an earlier release that did not re-encode pictures. CLEAN pictures
    have been re-encoded. QUARANTINED pictures could not be re-encoded, and are never shown to an engine,
    used for training, exported or backed up.
    """

    RAW = "raw"
    CLEAN = "clean"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture whose bytes are stored in the picture folder under the name `sha256`.

    Attributes:
        width: The width in pixels.
        height: The height in pixels.
        size: The size in bytes.
        phash: A 64-bit perceptual hash in hexadecimal.
    """

    sha256: str
    media_type: str
    width: int
    height: int
    size: int
    phash: str
    created: float = 0.0
    state: PictureState = PictureState.CLEAN


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its answer, and everything that produced the answer.

    Attributes:
        session: The ID of the conversation.
        update: The ID of the update with the question. It is unique, so handling the update again finds the
            exchange instead of answering twice.
        pictures: The SHA-256 hashes of the question's own pictures.
        former_pictures: The names of the pictures before re-encoding; empty if they have not changed.
        prompt_hash: The hash of the rendered prompt and its pictures at the time of the answer.
        replaces: The ID of the first exchange at this position of the conversation, if its question was
            answered again or edited. The newest exchange at a position counts; the others are kept.
        finish: Why the answer ended; "abort" if the user who asked stopped it.
        top_k: The top-k setting for the answer; None in rows from releases that did not record it.
    """

    session: int
    chat: int
    asker: int
    update: int
    question: str
    pictures: tuple[str, ...]
    answer: str
    model: str
    system: str
    prompt_hash: str
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int | None
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    encoded_tiles: int
    first_token_seconds: float
    seconds: float
    replaces: int | None = None
    created: float = 0.0
    id: int = 0
    top_k: int | None = None
    former_pictures: tuple[str, ...] = ()

    @property
    def position(self) -> int:
        """The ID of the first exchange at this exchange's position in the conversation."""
        return self.replaces or self.id


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update in the inbox; updates with the same `lane` are handled one after another."""

    id: int
    lane: str
    payload: str
    attempts: int
    received: float
    state: str = "stored"
    error: str = ""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A message that the bot sends in response to an update.

    Attributes:
        slot: The index of the reply among the update's replies, starting at 0.
        message: Telegram's ID of the message, or None if the reply is stored but not known to have been
            sent. When the update is handled again, a reply with an ID is edited; for a reply without one, a
            placeholder may be sent twice.
        final: Whether the message shows its final text.
        question: The ID of the message that the reply answers, or 0 if there is none.
        topic: The ID of the forum topic that contains the reply, or None if there is none.
        inline: Telegram's ID of the message in a chat where the bot is a guest; `message` is then None.
    """

    update: int
    slot: int
    chat: int
    message: int | None
    final: bool = False
    question: int = 0
    inline: str | None = None
    topic: int | None = None
