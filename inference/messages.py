"""Prompts, answers and errors: the types that every package shares with inference. Standard library only.

The exceptions::

    InferenceError
    ├── PictureError        the data is not an accepted picture; the sender can send another
    ├── PromptTooLong       the newest turn alone does not fit into the engine's window
    ├── EngineRejected      the engine answered HTTP 4xx; a retry would not help
    ├── EngineCrashed       the engine died or broke the connection in mid-answer; a retry may help
    │   └── EngineHung      the engine keeps the connection but sends no token
    └── EngineUnavailable   no engine can answer now (starting, crashed beyond its retries, stopped)
        └── LastNode        draining this replica would leave none that answers
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final, Protocol


class InferenceError(Exception):
    """Base class of the errors of inference. The text says what to do next."""


INVALID_PICTURE: Final = "invalid_image"
"""The error code of an engine's HTTP response for a picture that it cannot read."""


class PictureError(InferenceError):
    """The data is not an accepted picture."""


class PromptTooLong(InferenceError):
    """The newest turn alone exceeds the engine's window."""


class EngineRejected(InferenceError):
    """The engine refused the request (HTTP 4xx)."""


class EngineCrashed(InferenceError):
    """The engine did not finish its answer: connection lost, process dead, or no token for too long."""


class EngineHung(EngineCrashed):
    """The engine keeps the connection, but has sent no token for `token_timeout` seconds."""


class EngineUnavailable(InferenceError):
    """No engine can answer at the moment."""


class LastNode(EngineUnavailable):
    """Draining `node` would leave no replica that answers."""

    def __init__(self, node: str) -> None:
        super().__init__(f"nothing else would answer in place of {node}")
        self.node = node


class Role(StrEnum):
    """The speaker of a turn. The system text is not a turn; it belongs to the prompt."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture (JPEG, PNG, WebP …), exactly the bytes that are stored and sent.

    `sha256` is the hex digest of `data`, by which storage and caches identify the picture.
    """

    data: bytes = field(repr=False)
    sha256: str
    media_type: str = "image/jpeg"

    @classmethod
    def of(cls, data: bytes, media_type: str = "image/jpeg") -> Picture:
        """Return a picture with its digest computed."""
        return cls(data, sha256(data).hexdigest(), media_type)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. Pictures come before the text, as InternVL2 was trained."""

    role: Role
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with the same meaning for every engine.

    `temperature` 0 means greedy; `top_k` 0 means no limit, so that `top_p` alone applies; `seed` None means a random
    seed. The default of `top_k` is lmdeploy's.
    """

    temperature: float = 0.8
    top_p: float = 0.8
    max_new_tokens: int = 512
    seed: int | None = None
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole request: system text, history and the newest user turn (last in `turns`).

    `chat` is an opaque key of the conversation, by which requests are routed to the engine that has it cached. `model`
    is the id of the model that must answer; if it is empty, the deployment chooses.
    """

    system: str
    turns: tuple[Turn, ...]
    chat: str
    sampling: Sampling = Sampling()
    model: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and picture tiles of an answer, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    encoded_tiles: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Times are in seconds from the request to the engine.

    `model` is the deployment's id of the model that generated all of it. `finish` is "stop" (the model ended it),
    "length" (`max_new_tokens`) or "abort" (the client stopped it). `cut` is the prompt that was answered, if it had to
    be shortened to fit into the window.
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
    """One event of a streamed answer; exactly one of `text`, `restarted`, `waiting` and `answer` is set.

    `text` (with `model`) is appended to the answer. `restarted` discards all text so far: the engine crashed and
    another one starts over. `waiting` is the number of questions before this one in the queue; with `paused`, the
    deployment answers none of them for now. `answer` is the whole answer, in the last delta.
    """

    text: str = ""
    model: str = ""
    restarted: bool = False
    answer: Answer | None = None
    waiting: int | None = None
    paused: bool = False


class Engine(Protocol):
    """Answers prompts: one engine process over HTTP, or the deployment over several."""

    def answer(self, prompt: Prompt) -> AsyncIterator[Delta]:
        """Stream the answer; the last delta has the `Answer`. Raises `InferenceError`."""
        ...
