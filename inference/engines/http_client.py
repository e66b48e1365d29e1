"""One engine over its OpenAI-style HTTP interface: a Prompt in, a stream of Deltas out.

Knows the connection, streamed chunks and usage, and translates foreign errors, once, into the family of messages.py.
How a request is worded is openai_request.py's; processes, queues and retries are deployment.py's: here every failure
is raised, never repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import httpx
import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from inference.chat_format.template import SYSTEM
from inference.engines.requests import Requests
from inference.messages import (
    INVALID_PICTURE,
    Answer,
    Delta,
    EngineCrashed,
    EngineHung,
    EngineRejected,
    EngineUnavailable,
    InferenceError,
    Picture,
    PictureError,
    Prompt,
    PromptTooLong,
    Role,
    Sampling,
    Turn,
    Usage,
)
from inference.serving.engine_stats import engine_numbers

_CONNECT_SECONDS: Final = 5.0
_NUMBERS_SECONDS: Final = 1.0
_PROBE: Final = Sampling(temperature=0, max_new_tokens=4)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a server says that its model holds, in tokens; None where it does not say.

    `window` is the longest context (`max_model_len`, as our engines and vLLM name it), `cache` all of the KV cache
    (`kv_cache_tokens`, from our lmdeploy engine alone).
    """

    window: int | None = None
    cache: int | None = None


class HttpEngine:
    """An `Engine` at `base_url` (with or without `/v1`).

    `model` goes into every Answer. `name` is what the server calls it: None for the same, empty for the first
    model that the server lists. `token_timeout` (seconds) bounds every silence, `tiles` the tiles of a picture
    where the server heeds `max_dynamic_patch`. A `local` engine is one of our own processes: no proxy of the
    environment stands between, and the model that it reports must be the one asked for, because its port may
    have belonged to another process a moment ago.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        name: str | None = None,
        token_timeout: float = 60,
        tiles: int | None = None,
        api_key: str = "",
        local: bool = True,
    ) -> None:
        root = base_url.rstrip("/")
        self.base_url = root if root.endswith("/v1") else f"{root}/v1"
        self.model = model
        self._name = model if name is None else name
        self._learned = not self._name
        self._token_timeout = token_timeout
        self._local = local
        self._requests = Requests(tiles)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key or "none",
            max_retries=0,
            # Silence is measured here, from token to token; a limit for each read would let an engine that
            # sends empty chunks hang for ever.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            # On loopback it is plain HTTP: no proxy, and no certificates to load (30 ms of the event loop).
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not local, verify=not local),
        )

    async def aclose(self) -> None:
        """Close all connections; the engine aborts what it still computes for them."""
        await self._client.close()

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream the answer. Closing the iterator closes the connection, which aborts the engine's work.

        Raises PromptTooLong, PictureError, EngineRejected, EngineUnavailable (HTTP 429), EngineCrashed, EngineHung.
        """
        async with aclosing(self._stream(prompt, self._token_timeout)) as stream:
            async for delta in stream:
                yield delta

    async def probe(self, picture: Picture, patience: float) -> Answer:
        """A real, short answer about `picture`: the only proof that an engine is ready.

        `patience` in seconds takes the place of the token timeout. Raises as `answer` does.
        """
        prompt = Prompt(SYSTEM, (Turn(Role.USER, "What is this?", (picture,)),), chat="probe", sampling=_PROBE)
        async with aclosing(self._stream(prompt, patience)) as stream:
            async for delta in stream:
                if delta.answer is not None:
                    return delta.answer
        raise EngineCrashed("The engine's answer to a probe had no end.")

    async def numbers(self) -> dict[str, float]:
        """What the server's /metrics tell that answers do not; empty where it has none or is slow to say."""
        try:
            async with asyncio.timeout(_NUMBERS_SECONDS):
                page = await self._client.get(self.base_url.removesuffix("v1") + "metrics", cast_to=httpx.Response)
            return engine_numbers(page.text)
        except (openai.OpenAIError, httpx.HTTPError, TimeoutError, ValueError):
            return {}

    async def sizes(self) -> Sizes:
        """Read what the model holds from the server's list of models.

        Raises EngineCrashed where a local engine does not answer.
        """
        try:
            async with asyncio.timeout(self._token_timeout):
                listed = [model async for model in self._client.models.list()]
        except (openai.OpenAIError, httpx.HTTPError, TimeoutError, ValueError) as error:
            if self._local:
                raise EngineCrashed(f"The engine does not list its models: {error or 'it says nothing'}") from error
            return Sizes()
        model = next((each for each in listed if each.id == self._name or not self._name), None)
        told = (model.model_extra or {}) if model is not None else {}

        def tokens(name: str) -> int | None:
            value = told.get(name)
            return value if isinstance(value, int) and value > 0 else None

        return Sizes(window=tokens("max_model_len"), cache=tokens("kv_cache_tokens"))

    async def _stream(self, prompt: Prompt, patience: float) -> AsyncGenerator[Delta, None]:
        clock = asyncio.get_running_loop().time
        asked = clock()
        reading = _Reading()
        first_token: float | None = None
        stream: openai.AsyncStream[ChatCompletionChunk] | None = None
        deadline = asked + patience
        try:
            async with asyncio.timeout_at(deadline):
                if not self._name:
                    self._name = await self._first_listed()
                request = self._requests.of(prompt, self._name)
                stream = await self._client.chat.completions.create(**request)
            while True:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(stream, None)
                if chunk is None:
                    break
                if self._local and chunk.model != self._name:
                    raise EngineCrashed(f"Asked {self._name!r} and {chunk.model!r} answered.")
                text = reading.take(chunk)
                if text:
                    deadline = clock() + patience
                    first_token = first_token or clock()
                    yield Delta(text=text, model=self.model)
        except (openai.OpenAIError, httpx.HTTPError, TimeoutError, ValueError) as error:
            if self._learned and isinstance(error, openai.NotFoundError):
                self._name = ""
                raise EngineCrashed(f"The server at {self.base_url} has another model now.") from error
            raise _translated(error, patience) from error
        finally:
            if stream is not None:
                await stream.close()
        now = clock()
        yield Delta(
            answer=Answer(
                text="".join(reading.texts),
                model=self.model,
                finish=reading.outcome(),
                usage=reading.usage,
                first_token_seconds=(first_token or now) - asked,
                seconds=now - asked,
            )
        )

    async def _first_listed(self) -> str:
        async for model in self._client.models.list():
            return model.id
        raise EngineUnavailable(f"The server at {self.base_url} lists no model: load one there.")


class _Reading:
    """What has been read of one stream of chunks. Format: OpenAI's chat completion chunk, the last with usage."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.usage = Usage()
        self._finish: str | None = None
        self._model: str | None = None

    def take(self, chunk: ChatCompletionChunk) -> str:
        """Note what the chunk says and return its text, often empty. Raises EngineCrashed."""
        if self._model not in (None, chunk.model):
            raise EngineCrashed(f"The engine went over from {self._model!r} to {chunk.model!r} in mid-answer.")
        self._model = chunk.model
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage)
        text = ""
        for choice in chunk.choices or ():
            self._finish = choice.finish_reason or self._finish
            text += (choice.delta.content if choice.delta else None) or ""
        if text:
            self.texts.append(text)
        return text

    def outcome(self) -> str:
        """How the answer ended. Raises EngineCrashed unless the model itself or its limit ended it.

        Nobody here asks a server to abort and then goes on reading, so "abort" is the server's trouble.
        """
        if self._finish in ("stop", "length"):
            return self._finish
        raise EngineCrashed(f"The engine broke its answer off after {len(self.texts)} pieces ({self._finish}).")


def _usage(usage: CompletionUsage) -> Usage:
    """`encoded_tiles` is an extra field of our own engines; others leave it out."""
    details = usage.prompt_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(details.cached_tokens if details else None) or 0,
        encoded_tiles=(usage.model_extra or {}).get("encoded_tiles", 0),
    )


def _translated(error: Exception, patience: float) -> InferenceError:
    """The error in our own words."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return EngineHung(f"The engine said nothing for {patience:g} s.")
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        said = error.message.lower()
        if error.status_code == 413 or "context_length" in f"{error.code} {said}" or "context length" in said:
            return PromptTooLong("The question does not fit the model's window: shorten it or send fewer pictures.")
        # lmdeploy's errors have no code of their own: our worker there puts it before the text.
        named, _, reason = error.message.partition(f"{INVALID_PICTURE}: ")
        if error.code == INVALID_PICTURE or reason:
            return PictureError(reason or named)
        if error.status_code == 429:
            return EngineUnavailable("The engine has too much to do: ask again in a moment.")
        return EngineRejected(f"The engine refused the question (HTTP {error.status_code}): {error.message}")
    if isinstance(error, openai.APIStatusError):
        return EngineCrashed(f"The engine failed (HTTP {error.status_code}): {error.message}")
    return EngineCrashed(f"The engine broke off: {error or type(error).__name__}")
