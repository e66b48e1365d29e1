"""OpenAI's chat API as the CPU engine speaks it: parsing requests and building answers.

Source: platform.openai.com/docs/api-reference/chat. Extensions: `top_k` and `max_dynamic_patch` inside `image_url`, as
in lmdeploy, and `encoded_tiles` inside `usage`.
"""

from __future__ import annotations

import binascii
import json
import re
import reprlib
import time
from base64 import b64decode
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from inference.chat_format.template import SYSTEM
from inference.messages import Picture, Prompt, Role, Sampling, Turn, Usage

_DEFAULT_MAX_TOKENS: Final = 512
_MAX_TILES: Final = 40
_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_LABEL: Final = re.compile(r"Image-\d+: ?")

# These would change the answer, so any value but the default is refused rather than ignored.
_UNSUPPORTED: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "stop": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """A request that cannot be served. The text is sent to the client."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON that OpenAI's clients expect with an HTTP status of 400 and above."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request. `tiles` holds the most tiles of each picture of the prompt, None for the checkpoint's limit."""

    prompt: Prompt
    tiles: tuple[int | None, ...]
    stream: bool
    include_usage: bool


def parse(body: bytes, model: str) -> ChatRequest:
    """Parse the body of a chat completion request to the model named `model`. Raises ApiError."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"The body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError("The body must be a JSON object.")
    if fields.get("model") not in (None, model):
        raise ApiError(
            f"The model {_shown(fields['model'])} does not exist here; this engine serves {model!r}.",
            status=404,
            code="model_not_found",
            param="model",
        )
    for name, served in _UNSUPPORTED.items():
        if fields.get(name) is not None and fields[name] not in served:
            raise ApiError(f"{name} is not supported by this engine: leave it out.", param=name)
    system, turns, tiles = _messages(fields.get("messages"))
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ApiError("stream_options must be an object.", param="stream_options")
    user = fields.get("user")
    if user is not None and not isinstance(user, str):
        raise ApiError(f"user must be a text, not {_shown(user)}.", param="user")
    return ChatRequest(
        prompt=Prompt(system, turns, chat=user or "", sampling=_sampling(fields)),
        tiles=tiles,
        stream=_flag(fields, "stream"),
        include_usage=_flag(options or {}, "include_usage"),
    )


def _shown(value: object) -> str:
    """Return a value as an error message shows it, shortened."""
    return reprlib.repr(value)


def _sampling(fields: dict[str, Any]) -> Sampling:
    longest = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    seed = fields.get("seed")
    return Sampling(
        temperature=_number(fields, "temperature", 0, 2, 1.0),
        top_p=_number(fields, "top_p", 0, 1, 1.0),
        max_new_tokens=int(_number(fields, longest, 1, 2**31, _DEFAULT_MAX_TOKENS, whole=True)),
        seed=None if seed is None else int(_number(fields, "seed", -(2**63), 2**63 - 1, 0, whole=True)),
        top_k=int(_number(fields, "top_k", 0, 2**31, 0, whole=True)),
    )


def _number(
    fields: dict[str, Any], name: str, least: float, most: float, default: float, *, whole: bool = False
) -> float:
    value = fields.get(name)
    if value is None:
        return default
    allowed = int if whole else int | float
    # A comparison with NaN is false, so NaN is refused as well.
    if isinstance(value, bool) or not isinstance(value, allowed) or not least <= value <= most:
        kind = "an integer" if whole else "a number"
        raise ApiError(f"{name} must be {kind} from {least} to {most}, not {_shown(value)}.", param=name)
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false, not {_shown(value)}.", param=name)
    return bool(value)


def _messages(value: object) -> tuple[str, tuple[Turn, ...], tuple[int | None, ...]]:
    """Return the system text, the turns and the tile limit of each picture."""
    if not isinstance(value, list) or not value:
        raise ApiError("messages must be a list with at least one message.", param="messages")
    system = SYSTEM
    turns: list[Turn] = []
    tiles: list[int | None] = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise ApiError(f"{where} must be an object with role and content.", param=where)
        role = message.get("role")
        text, pictures, limits = _content(message.get("content"), f"{where}.content")
        if pictures and role != Role.USER:
            raise ApiError(f"{where}: only a user's message can hold pictures.", param=where)
        if role in ("system", "developer"):
            if index:
                raise ApiError(f"{where}: the {role} message must be the first.", param=where)
            system = text
        elif role in (Role.USER, Role.ASSISTANT):
            turns.append(Turn(Role(role), text, pictures))
            tiles += limits
        else:
            raise ApiError(f"{where}: unknown role {_shown(role)}; use system, user or assistant.", param=where)
    if not turns or turns[-1].role is not Role.USER:
        raise ApiError("The last message must be the user's.", param="messages")
    return system, tuple(turns), tuple(tiles)


def _content(value: object, where: str) -> tuple[str, tuple[Picture, ...], list[int | None]]:
    """Return the text, the pictures and the pictures' tile limits of one message.

    Pictures move to the front of their turn and the chat format numbers them, so a client's own "Image-1: " before a
    picture is dropped.
    """
    if isinstance(value, str):
        return _without_surrogates(value), (), []
    if value is None:
        return "", (), []
    if not isinstance(value, list):
        raise ApiError(f"{where} must be a text or a list of parts.", param=where)
    texts: list[str] = []
    pictures: list[Picture] = []
    limits: list[int | None] = []
    for number, part in enumerate(value):
        part_where = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(_without_surrogates(part["text"]))
        elif kind == "image_url":
            picture, limit = _picture(part.get("image_url"), part_where)
            pictures.append(picture)
            limits.append(limit)
            if texts and _LABEL.fullmatch(texts[-1]):
                texts.pop()
        else:
            raise ApiError(
                f"{part_where}: unknown content type {_shown(kind)}; use a text or an image_url with a data: URL.",
                param=part_where,
            )
    return "".join(texts), tuple(pictures), limits


def _without_surrogates(text: str) -> str:
    """Replace unpaired surrogates, which JSON can express and tokenizers cannot read."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _picture(value: object, where: str) -> tuple[Picture, int | None]:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise ApiError(f"{where}.image_url must be an object with a url.", param=where)
    found = _DATA_URL.match(url)
    if found is None:
        raise ApiError(
            f"{where}: only data: URLs with base64 are read here (data:image/jpeg;base64,…); nothing is fetched.",
            param=where,
        )
    try:
        data = b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{where}: the picture's base64 is broken ({error}).", param=where) from None
    limits = value if isinstance(value, dict) else {}
    limit = None
    if limits.get("max_dynamic_patch") is not None:
        limit = int(_number(limits, "max_dynamic_patch", 1, _MAX_TILES, 1, whole=True))
    return Picture.of(data, found["type"] or "image/jpeg"), limit


class Reply:
    """Builds the JSON of one answer; all chunks share one id, one time and the model's name."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def completion(self, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": _usage(usage)}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """Return one chunk of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def last_chunks(self, finish: str, usage: Usage, *, separate_usage: bool) -> list[dict[str, Any]]:
        """Return the chunk with the finish reason and the usage, in a chunk without choices if `separate_usage`."""
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
