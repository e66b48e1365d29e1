"""Requests for OpenAI's chat API: messages with pictures as data: URLs, and sampling parameters.

Source: platform.openai.com/docs/api-reference/chat. Two parameters are lmdeploy's extensions: `top_k`,
and `max_dynamic_patch` inside `image_url`.
"""

from __future__ import annotations

from base64 import b64encode
from operator import attrgetter
from typing import Any, Final
from urllib.parse import quote

from cachetools import LRUCache, cachedmethod

from inference.chat_format.template import parts, system_text
from inference.messages import Picture, Prompt, Turn

SESSION_HEADER: Final = "x-session-id"
"""The header that identifies the chat (Ray Serve's default, `RAY_SERVE_SESSION_ID_HEADER_KEY`)."""

_DATA_URL_BYTES: Final = 32 * 2**20


class ChatRequests:
    """Builder of requests to one engine.

    Encoded pictures are cached, because every request of a chat contains the chat's earlier pictures.

    Args:
        tiles: The maximum number of tiles per picture, or None for the engine's own limit.
    """

    def __init__(self, tiles: int | None) -> None:
        self._tiles = tiles
        self._data_urls: LRUCache[tuple[str, str], str] = LRUCache(_DATA_URL_BYTES, len)

    def build(self, prompt: Prompt, model: str, *, stream: bool = True) -> dict[str, Any]:
        """Return the keyword arguments for a chat completion, always with a system message."""
        sampling = prompt.sampling
        request: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": system_text(prompt.system)},
                *({"role": turn.role.value, "content": self._content(turn)} for turn in prompt.turns),
            ],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Not in OpenAI's API; always sent, because servers have different defaults.
            "extra_body": {"top_k": sampling.top_k},
            "max_tokens": sampling.max_new_tokens,
            "user": prompt.chat,
            # Ray Serve routes by this header, so that a chat stays with the engine that has cached it.
            "extra_headers": {SESSION_HEADER: quote(prompt.chat)},
            "stream": stream,
        }
        if stream:
            request["stream_options"] = {"include_usage": True}
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        return request

    def _content(self, turn: Turn) -> str | list[dict[str, Any]]:
        """Return the content parts of a turn, or a string if the turn has no pictures.

        Not all servers accept parts in an assistant's message.
        """
        if not turn.pictures:
            return "".join(part for part in parts(turn) if isinstance(part, str))
        return [
            {"type": "text", "text": part} if isinstance(part, str) else self._picture(part) for part in parts(turn)
        ]

    def _picture(self, picture: Picture) -> dict[str, Any]:
        image: dict[str, Any] = {"url": self._data_url(picture)}
        if self._tiles is not None:
            image["max_dynamic_patch"] = self._tiles
        return {"type": "image_url", "image_url": image}

    @cachedmethod(attrgetter("_data_urls"), key=lambda _, picture: (picture.media_type, picture.sha256))
    def _data_url(self, picture: Picture) -> str:
        return f"data:{picture.media_type};base64,{b64encode(picture.data).decode()}"
