"""Client for one engine's OpenAI chat API; the client translates errors and never retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import httpx
import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from inference.engines.chat_request import ChatRequests
from inference.engines.chunk_reader import COMPLETE, ChunkReader
from inference.engines.http_errors import translated
from inference.engines.reported_metrics import read_metrics
from inference.images.sample_picture import sample_picture
from inference.messages import (
    Answer,
    Delta,
    EngineCrashed,
    EngineUnavailable,
    InferenceError,
    Prompt,
    Role,
    Sampling,
    Turn,
)

_CONNECT_SECONDS: Final = 5.0
_METRICS_SECONDS: Final = 1.0

_IDLE_CONNECTIONS: Final = 8
"""The maximum number of idle connections. In every request, httpcore 1.0.9 takes time for each pair of them: with 64, a
request took 6.9 ms of processor time; with 8, 2.0 ms."""

_PROBE: Final = Sampling(temperature=0, max_new_tokens=4)

_WHOLE_ANSWER: Final = 10
"""The maximum time for an answer that is not streamed, as a multiple of the maximum time without a token."""

_ERRORS: Final = (openai.OpenAIError, httpx.HTTPError, TimeoutError, ValueError)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes, in tokens, that a server reports for its model; a size is None if it is not reported.

    Attributes:
        window: The longest context (`max_model_len`, as in vLLM).
        cache: The whole KV cache (`kv_cache_tokens`, reported only by the bot's own lmdeploy engine).
    """

    window: int | None = None
    cache: int | None = None


class HttpEngine:
    """An `Engine` whose server is reached over HTTP.

    Args:
        base_url: The server's address, with or without `/v1`.
        model: The model's ID, reported in answers.
        name: The model's name on the server. None means `model`; an empty name means the first model that
            the server lists.
        token_timeout: The maximum time without a token, in seconds.
        tiles: The maximum number of tiles per picture, for servers that support `max_dynamic_patch`.
        api_key: The bearer token.
        local: Whether the bot started the engine. If so, no proxy is used, and the model that the engine
            reports must be the requested one, because another process may be answering on the port.
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
        self._discovers_name = not self._name
        self._token_timeout = token_timeout
        self._local = local
        self._requests = ChatRequests(tiles)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key or "none",
            max_retries=0,
            # The timeout is measured in `answer`, from token to token; a limit for each read would let an engine
            # that sends empty chunks hang forever.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            # Local engines need no proxy. Plain HTTP needs no certificates, and loading them blocks for 30 ms.
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not local,
                verify=not local or root.startswith("https"),
                limits=httpx.Limits(max_keepalive_connections=_IDLE_CONNECTIONS),
            ),
        )

    async def aclose(self) -> None:
        """Close all connections, which aborts the answers in flight on the engine."""
        await self._client.close()

    async def answer(self, prompt: Prompt, token_timeout: float | None = None) -> AsyncGenerator[Delta, None]:
        """Stream the answer. Closing the iterator closes the connection, which aborts the generation.

        Args:
            prompt: The prompt.
            token_timeout: The maximum time without a token, in seconds; by default, the client's own timeout.

        Raises:
            PromptTooLong, PictureError, EngineRejected: The engine refused the request.
            EngineUnavailable: The engine is overloaded (HTTP 429).
            EngineCrashed, EngineHung: The engine failed while answering.
        """
        timeout = self._token_timeout if token_timeout is None else token_timeout
        clock = asyncio.get_running_loop().time
        started = clock()
        reader = ChunkReader()
        first_token: float | None = None
        stream: openai.AsyncStream[ChatCompletionChunk] | None = None
        deadline = started + timeout
        try:
            async with asyncio.timeout_at(deadline):
                if not self._name:
                    self._name = await self._first_listed()
                request = self._requests.build(prompt, self._name)
                stream = await self._client.chat.completions.create(**request)
            while True:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(stream, None)
                if chunk is None:
                    break
                self._check_model(chunk.model)
                text = reader.read(chunk)
                if text:
                    deadline = clock() + timeout
                    first_token = first_token or clock()
                    yield Delta(text=text, model=self.model)
        except _ERRORS as error:
            raise self._failure(error, timeout) from error
        finally:
            if stream is not None:
                await stream.close()
        now = clock()
        yield Delta(
            answer=Answer(
                text="".join(reader.texts),
                model=self.model,
                finish=reader.finish_reason(),
                usage=reader.usage,
                first_token_seconds=(first_token or now) - started,
                seconds=now - started,
            )
        )

    async def whole_answer(self, prompt: Prompt) -> str:
        """Return the text of an answer that is not streamed, which takes less processor time on both sides.

        Raises the same errors as `answer`; the engine is hung if it has not answered after a multiple of the client's
        timeout for a token.
        """
        timeout = _WHOLE_ANSWER * self._token_timeout
        try:
            async with asyncio.timeout(timeout):
                request = self._requests.build(prompt, self._name, stream=False)
                completion: ChatCompletion = await self._client.chat.completions.create(**request)
        except _ERRORS as error:
            raise self._failure(error, timeout) from error
        if not completion.choices:
            raise EngineCrashed("The engine sent no answer.")
        self._check_model(completion.model)
        choice = completion.choices[0]
        if choice.finish_reason not in COMPLETE:
            raise EngineCrashed(f"The engine ended its answer with {choice.finish_reason!r}.")
        return choice.message.content or ""

    async def probe(self, token_timeout: float) -> Answer:
        """Ask about a sample picture and return the short answer, which proves that the engine is ready.

        Raises the same errors as `answer`.
        """
        question = Turn(Role.USER, "What is this?", (sample_picture(),))
        prompt = Prompt("Answer briefly.", (question,), chat="probe", sampling=_PROBE)
        async with aclosing(self.answer(prompt, token_timeout)) as stream:
            async for delta in stream:
                if delta.answer is not None:
                    return delta.answer
        raise EngineCrashed("The engine's answer to a probe was incomplete.")

    async def numbers(self) -> dict[str, float]:
        """Return selected metrics from the server's /metrics page.

        If there is no such page, or the server does not answer in time, the result is an empty dictionary.
        """
        try:
            async with asyncio.timeout(_METRICS_SECONDS):
                page = await self._client.get(self.base_url.removesuffix("v1") + "metrics", cast_to=httpx.Response)
            return read_metrics(page.text)
        except _ERRORS:
            return {}

    async def sizes(self) -> Sizes:
        """Return the model's sizes from the server's list of models.

        Raises:
            EngineCrashed: The engine is local and does not answer.
        """
        try:
            async with asyncio.timeout(self._token_timeout):
                listed = [model async for model in self._client.models.list()]
        except _ERRORS as error:
            if self._local:
                raise EngineCrashed(f"The engine does not list its models: {error or 'timeout'}") from error
            return Sizes()
        model = next((each for each in listed if each.id == self._name or not self._name), None)
        reported = (model.model_extra or {}) if model is not None else {}

        def tokens(name: str) -> int | None:
            value = reported.get(name)
            return value if isinstance(value, int) and value > 0 else None

        return Sizes(window=tokens("max_model_len"), cache=tokens("kv_cache_tokens"))

    def _check_model(self, answered: str) -> None:
        if self._local and answered != self._name:
            raise EngineCrashed(f"The model {answered!r} answered instead of {self._name!r}.")

    def _failure(self, error: Exception, timeout: float) -> InferenceError:
        """Return the error that corresponds to an exception of the HTTP client."""
        if self._discovers_name and isinstance(error, openai.NotFoundError):
            self._name = ""
            return EngineCrashed(f"The server at {self.base_url} now serves another model.")
        if self._local and isinstance(error, openai.NotFoundError | openai.AuthenticationError):
            return EngineCrashed(f"The engine started for {self._name} is not at {self.base_url}.")
        return translated(error, timeout)

    async def _first_listed(self) -> str:
        async for model in self._client.models.list():
            return model.id
        raise EngineUnavailable(f"The server at {self.base_url} lists no model: load one there.")
