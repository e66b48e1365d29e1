"""Types for the prompts, answers and errors of inference, shared by all packages.

This module uses only the standard library. The exception hierarchy::

    InferenceError
    ├── PictureError        the data is not an acceptable picture; the sender can send another
    ├── PromptTooLong       the newest turn alone does not fit into the engine's context window
    ├── EngineRejected      the engine responded with HTTP 4xx; a retry would not help
    ├── EngineCrashed       the engine died or broke the connection mid-answer; a retry may help
    │   └── EngineHung      the engine keeps the connection open but sends no token
    └── EngineUnavailable   no engine can answer now (starting, stopped, or out of retries after crashes)
        └── LastNode        draining this replica would leave none able to answer
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final, Protocol


class InferenceError(Exception):
    """Base class of inference errors. The message says what to do next."""


INVALID_PICTURE: Final = "invalid_image"
"""The error code of an engine's HTTP response for a picture that it cannot read."""


class PictureError(InferenceError):
    """The data is not an acceptable picture, for example because it is damaged or too large."""


class PromptTooLong(InferenceError):
    """The newest turn alone exceeds the engine's context window."""


class EngineRejected(InferenceError):
    """The engine refused the request (HTTP 4xx)."""


class EngineCrashed(InferenceError):
    """The engine did not finish its answer: the connection broke, the process died or no token came in time."""


class EngineHung(EngineCrashed):
    """The engine keeps the connection open but has sent no token for `token_timeout` seconds."""


class EngineUnavailable(InferenceError):
    """No engine can answer at the moment."""


class LastNode(EngineUnavailable):
    """Draining `node` would leave no replica able to answer."""

    def __init__(self, node: str) -> None:
        super().__init__(f"no other replica could answer in place of {node}")
        self.node = node


class Role(StrEnum):
    """The speaker of a turn. The system text is not a turn; it belongs to the prompt."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture (JPEG, PNG, WebP …), byte for byte as it is stored and sent.

    Storage and caches identify the picture by `sha256`, the hex digest of `data`.
    """

    data: bytes = field(repr=False)
    sha256: str
    media_type: str = "image/jpeg"

    @classmethod
    def of(cls, data: bytes, media_type: str = "image/jpeg") -> Picture:
        """Create a picture from `data` and compute its digest."""
        return cls(data, sha256(data).hexdigest(), media_type)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. Its pictures precede its text, as in the training of InternVL2."""

    role: Role
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with the same meaning for every engine.

    A `temperature` of 0 selects greedy decoding. A `top_k` of 0 sets no limit, so only `top_p` applies; the
    default `top_k` is the same as lmdeploy's. If `seed` is None, a random seed is used.
    """

    temperature: float = 0.8
    top_p: float = 0.8
    max_new_tokens: int = 512
    seed: int | None = None
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class Prompt:
    """A complete request: the system text, the history and the newest user turn (the last of `turns`).

    `chat` is an opaque key of the conversation, used to route requests to the engine that has the
    conversation cached. `model` is the ID of the model that must answer, or empty to let the deployment
    choose.
    """

    system: str
    turns: tuple[Turn, ...]
    chat: str
    sampling: Sampling = Sampling()
    model: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token and picture tile counts for one answer, as reported by the engine."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    encoded_tiles: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, with times in seconds since the request was sent to the engine.

    `model` is the deployment's ID for the model that generated the whole answer. `finish` is "stop" (the
    model ended the answer), "length" (`max_new_tokens` was reached) or "abort" (the client stopped the
    answer). `cut` is the shortened prompt that was answered, or None if the prompt fit into the context
    window.
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

    Attributes:
        text: Text to append to the answer, generated by `model`.
        model: The ID of the model that generated `text`.
        restarted: Whether all the text so far must be discarded because the engine crashed and another one
            is starting over.
        answer: The whole answer, in the last event.
        waiting: The number of questions ahead of this question in the queue.
        paused: Whether the deployment has paused answering queued questions; set only together with
            `waiting`.
    """

    text: str = ""
    model: str = ""
    restarted: bool = False
    answer: Answer | None = None
    waiting: int | None = None
    paused: bool = False


class Engine(Protocol):
    """Interface for answering prompts, implemented by the HTTP client of one engine and by the deployment."""

    def answer(self, prompt: Prompt) -> AsyncIterator[Delta]:
        """Stream the answer as deltas; the last delta contains the complete `Answer`.

        Raises:
            InferenceError: The prompt was not answered completely.
        """
        ...
