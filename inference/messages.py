"""What goes into an engine and what comes out: the vocabulary every room shares with inference.

Standard library only, so the bot can import it without torch. Knows nothing about transport,
templates or processes.

The error family::

    InferenceError
    ├── PictureError        the bytes are not a picture we accept; the sender can mend it
    ├── PromptTooLong       the newest turn alone does not fit the engine's window
    ├── EngineRejected      the engine answered 4xx; asking again would not help
    ├── EngineCrashed       the engine died or broke the connection in mid-answer; asking again may help
    │   └── EngineHung      … it is still there but says nothing
    └── EngineUnavailable   no engine can answer now (starting, crashed beyond its retries, stopped)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final, Protocol


class InferenceError(Exception):
    """Base of everything the inference room raises on purpose. The text tells the next step."""


INVALID_PICTURE: Final = "invalid_image"
"""How an engine's answer over HTTP names a picture that it cannot read."""


class PictureError(InferenceError):
    """The bytes are not a picture we accept."""


class PromptTooLong(InferenceError):
    """The newest turn alone exceeds the engine's window."""


class EngineRejected(InferenceError):
    """The engine refused the request (HTTP 4xx)."""


class EngineCrashed(InferenceError):
    """The engine broke off: connection lost, process dead, or silent for too long."""


class EngineHung(EngineCrashed):
    """The engine keeps the connection but no token came for `token_timeout` seconds."""


class EngineUnavailable(InferenceError):
    """No engine can answer at the moment."""


class Role(StrEnum):
    """Who speaks in a turn. The system text is not a turn; it belongs to the Prompt."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture (JPEG, PNG, WebP …), exactly the bytes that are stored and sent.

    `sha256` is the hex digest of `data`: the picture's name in storage and in every cache.
    """

    data: bytes = field(repr=False)
    sha256: str
    media_type: str = "image/jpeg"

    @classmethod
    def of(cls, data: bytes, media_type: str = "image/jpeg") -> Picture:
        """Wrap encoded bytes, computing their digest."""
        return cls(data, sha256(data).hexdigest(), media_type)


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's contribution. Pictures stand before the text, as InternVL2 was trained."""

    role: Role
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answer is drawn, by every engine in the same way.

    `temperature` 0 means greedy; `top_k` 0 means that `top_p` alone limits what is drawn from; `seed` None means a
    fresh one. The default of `top_k` is lmdeploy's.
    """

    temperature: float = 0.8
    top_p: float = 0.8
    max_new_tokens: int = 512
    seed: int | None = None
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole request: persona, history and the newest user turn (last in `turns`).

    `chat` is an opaque key that stays the same for one conversation: engines route and cache by it.
    """

    system: str
    turns: tuple[Turn, ...]
    chat: str
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in tokens and picture tiles, as the engine counted it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    encoded_tiles: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Times in seconds from the moment the engine was asked.

    `model` is the identifier under which the deployment knows the model that spoke every word of it.
    `finish` is "stop" (the model ended), "length" (max_new_tokens) or "abort" (whoever asked had heard enough). `cut`
    is the prompt that was answered where that was shorter than the one asked, because all of it would not have fit.
    """

    text: str
    model: str
    finish: str
    usage: Usage
    first_token_seconds: float
    seconds: float
    cut: Prompt | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Delta:
    """One step of a streamed answer.

    Exactly one of the fields is meaningful: `text` appends, in the words of `model`; `restarted` voids all text so far
    (the engine crashed and another one begins anew); `answer` is the last delta and carries the whole; `waiting` says
    that the question stands in the queue with this many before it (0: next), together with `paused` when nobody is
    answered for now because the deployment is paused.
    """

    text: str = ""
    model: str = ""
    restarted: bool = False
    answer: Answer | None = None
    waiting: int | None = None
    paused: bool = False


class Engine(Protocol):
    """Anything that answers prompts: one engine process over HTTP, or the deployment over several."""

    def answer(self, prompt: Prompt) -> AsyncIterator[Delta]:
        """Stream the answer; the last delta carries the `Answer`. Raises `InferenceError`."""
        ...
