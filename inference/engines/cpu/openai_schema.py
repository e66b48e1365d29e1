"""Request parsing and response building for the part of OpenAI's chat API that the bot's client uses.

Source: platform.openai.com/docs/api-reference/chat. The extensions are `top_k` and `max_dynamic_patch`
(the latter inside `image_url`), as in lmdeploy, and `encoded_tiles` inside `usage`.
"""

from __future__ import annotations

import json
import re
import reprlib
import time
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from inference.messages import Picture, Prompt, Role, Sampling, Turn, Usage

_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_LABEL: Final = re.compile(r"Image-\d+: ?")


class ApiError(Exception):
    """A request that cannot be served. The error's text is sent to the client."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON body that OpenAI's clients expect in a response with an HTTP status of 400 or above."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _without_surrogates(text: object) -> object:
    """Replace unpaired surrogates, which JSON can express but tokenizers cannot read."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else text


def _decoded(url: object) -> Picture:
    """Return the picture in a data: URL.

    Raises:
        ValueError: The value is not a base64 data: URL.
    """
    found = _DATA_URL.match(url) if isinstance(url, str) else None
    if found is None or not isinstance(url, str):
        raise ValueError("only data: URLs in base64 are accepted (data:image/jpeg;base64,…); nothing is fetched")
    return Picture.of(b64decode(url[found.end() :], validate=True), found["type"] or "image/jpeg")


def _as_parts(content: object) -> object:
    return [] if content is None else [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Strict(BaseModel):
    """Base class for models that convert no types and reject unknown fields, which might change the answer."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


class _Image(_Strict):
    picture: Annotated[Picture, BeforeValidator(_decoded), Field(alias="url")]
    max_dynamic_patch: int | None = Field(None, ge=1, le=40)


class _TextPart(_Strict):
    type: Literal["text"]
    text: Annotated[str, BeforeValidator(_without_surrogates)]


class _ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: _Image


_Part = Annotated[_TextPart | _ImagePart, Field(discriminator="type")]


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_as_parts)] = []

    def parts(self) -> tuple[str, list[_Image]]:
        """Return the text and the pictures of a message.

        Pictures move to the front of their turn, and the chat format numbers them, so a client's own label
        before a picture, such as "Image-1: ", is dropped.
        """
        texts: list[str] = []
        images: list[_Image] = []
        for part in self.content:
            if isinstance(part, _TextPart):
                texts.append(part.text)
                continue
            images.append(part.image_url)
            if texts and _LABEL.fullmatch(texts[-1]):
                texts.pop()
        return "".join(texts), images


class _StreamOptions(_Strict):
    include_usage: bool = False


class _Body(_Strict):
    model: str = ""
    messages: list[_Message] = Field(min_length=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31)
    max_tokens: int = Field(512, ge=1, le=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    user: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid chat completion request.

    Attributes:
        tiles: The maximum number of tiles of each picture, or None for the checkpoint's limit.
    """

    prompt: Prompt
    tiles: tuple[int | None, ...]
    stream: bool
    include_usage: bool


def parse(body: bytes, model: str, system: str) -> ChatRequest:
    """Parse the body of a chat completion request.

    Args:
        body: The body.
        model: The name of the model that is served.
        system: The system text for conversations without one.

    Raises:
        ApiError: The body is invalid, or names another model.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"The body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError("The body must be a JSON object.")
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("model", model) != model:
        raise ApiError(
            f"The model {reprlib.repr(fields['model'])} does not exist here; this engine serves {model!r}.",
            status=404,
            code="model_not_found",
            param="model",
        )
    try:
        valid = _Body.model_validate(fields)
    except ValidationError as error:
        raise _api_error(error) from None
    system, turns, tiles = _conversation(valid.messages, system)
    sampling = Sampling(valid.temperature, valid.top_p, valid.max_tokens, valid.seed, valid.top_k)
    prompt = Prompt(system, turns, chat=valid.user, sampling=sampling)
    return ChatRequest(prompt, tiles, valid.stream, valid.stream_options.include_usage)


def _api_error(error: ValidationError) -> ApiError:
    """Convert the first validation error to an ApiError in the form `messages[0].content: message`."""
    first = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    return ApiError(
        f"{path}: {first['msg'].removeprefix('Value error, ')}, not {reprlib.repr(first['input'])}.", param=path
    )


def _conversation(messages: list[_Message], system: str) -> tuple[str, tuple[Turn, ...], tuple[int | None, ...]]:
    """Return the system text, the turns and the tile limit of each picture."""
    turns: list[Turn] = []
    tiles: list[int | None] = []
    for index, message in enumerate(messages):
        text, images = message.parts()
        if images and message.role != "user":
            raise ApiError("Only a user's message can have pictures.", param=f"messages[{index}]")
        if message.role in ("user", "assistant"):
            turns.append(Turn(Role(message.role), text, tuple(each.picture for each in images)))
            tiles += [each.max_dynamic_patch for each in images]
        elif index:
            raise ApiError("The system message must be the first.", param=f"messages[{index}]")
        else:
            system = text
    if not turns or turns[-1].role is not Role.USER:
        raise ApiError("The last message must be the user's.", param="messages")
    return system, tuple(turns), tuple(tiles)


class CompletionBuilder:
    """Builder of the JSON for one answer; all chunks share the same ID, time and model name."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def completion(self, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        """Return the response body for an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": _usage(usage)}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """Return one chunk of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def last_chunks(self, finish: str, usage: Usage, *, separate_usage: bool) -> list[dict[str, Any]]:
        """Return the last chunks of a streamed answer, with the finish reason and the usage.

        The usage is in the chunk with the finish reason or, if `separate_usage` is set, in a further chunk
        without choices.
        """
        last = self.chunk({}, finish)
        if separate_usage:
            return [last, {**last, "choices": [], "usage": _usage(usage)}]
        return [{**last, "usage": _usage(usage)}]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "encoded_tiles": usage.encoded_tiles,
    }
