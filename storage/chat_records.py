"""Rows about chats: people, pictures, exchanges, and the updates and replies that produce them.

Times are UTC seconds since the epoch. Ids of people, chats, updates and messages are Telegram's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Person:
    """A Telegram user.

    `language` was chosen with /language; None follows `client_language`. Training uses neither questions nor votes of a
    person who `opted_out`. A person who `wants_notes` is notified when a model that learned from their votes goes live.
    """

    id: int
    name: str = ""
    client_language: str | None = None
    language: str | None = None
    opted_out: bool = False
    wants_notes: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """A Telegram chat; `kind` is private, group, supergroup or channel."""

    id: int
    kind: str = "private"
    title: str = ""


class PictureState(StrEnum):
    """The state of a picture's re-encoding.

    RAW pictures are stored as they were sent, by a release that did not re-encode. CLEAN ones have been re-encoded.
    QUARANTINED ones could not be re-encoded, and are never shown to an engine, trained on, exported or backed up.
    """

    RAW = "raw"
    CLEAN = "clean"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture whose bytes are in the picture folder under `sha256`.

    `width` and `height` are in pixels, `size` is in bytes, and `phash` is a 64-bit perceptual hash in hex.
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
    """A question, its answer, and everything that produced it.

    Attributes:
        session: The conversation.
        update: The update with the question. It is unique, so that a replay finds the exchange instead of answering
            twice.
        pictures: SHA-256 of the question's own pictures.
        former_pictures: Their names before they were re-encoded; empty if the names are the same.
        prompt_hash: Hash of the rendered prompt and its pictures, as they were then.
        replaces: The first exchange at this position of the conversation, for a question that was answered again or
            edited. The newest exchange of a position counts; the others are kept.
        finish: Why the answer ended; "abort" if its asker stopped it.
        top_k: None in rows from releases that did not record it.
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
        """The id of the first exchange at this position of the conversation."""
        return self.replaces or self.id


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update in the inbox. Updates of one `lane` are handled one after the other."""

    id: int
    lane: str
    payload: str
    attempts: int
    received: float
    state: str = "stored"
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A message of the bot that belongs to an update; `slot` counts the update's replies from 0.

    It is stored with `message` None before it is sent, and with Telegram's message id afterwards. A replay that finds
    an id edits that message; one that finds None may send a placeholder twice. `question` is the message that it
    answers, or 0 if there is none.
    """

    update: int
    slot: int
    chat: int
    message: int | None
    final: bool = False
    question: int = 0
