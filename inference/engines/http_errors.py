"""Translation of the HTTP client's exceptions into those of `inference.messages`."""

from __future__ import annotations

import openai

from inference.messages import (
    INVALID_PICTURE,
    EngineCrashed,
    EngineHung,
    EngineRejected,
    EngineUnavailable,
    InferenceError,
    PictureError,
    PromptTooLong,
)


def translated(error: Exception, timeout: float) -> InferenceError:
    """Return the exception from `inference.messages` that corresponds to an error of the HTTP client."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return EngineHung(f"The engine sent no token for {timeout:g} s.")
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        message = error.message.lower()
        if error.status_code == 413 or "context_length" in f"{error.code} {message}" or "context length" in message:
            return PromptTooLong("The question does not fit the model's window: shorten it or send fewer pictures.")
        # lmdeploy's errors have no code, so the bot's lmdeploy worker puts it before the text.
        named, _, reason = error.message.partition(f"{INVALID_PICTURE}: ")
        if error.code == INVALID_PICTURE or reason:
            return PictureError(reason or named)
        if error.status_code == 429:
            return EngineUnavailable("The engine is overloaded: ask again in a moment.")
        return EngineRejected(f"The engine refused the question (HTTP {error.status_code}): {error.message}")
    if isinstance(error, openai.APIStatusError):
        return EngineCrashed(f"The engine failed (HTTP {error.status_code}): {error.message}")
    return EngineCrashed(f"The connection to the engine was lost: {error or type(error).__name__}")
