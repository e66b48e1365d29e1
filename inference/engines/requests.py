"""A Prompt as a request of the OpenAI chat API: messages with parts, pictures as data URLs, sampling.

Knows field names, as every engine takes them, and encodes a picture once. What stands in a turn, and how text is made
harmless, is prompt.py's; sending it is client.py's. Source: platform.openai.com/docs/api-reference/chat;
`top_k`, and `max_dynamic_patch` inside `image_url`, are lmdeploy's extensions.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

from cachetools import LRUCache

from inference.chat_format.template import parts, system_text
from inference.messages import Picture, Prompt, Turn

_DATA_URL_BYTES: Final = 32 * 2**20


class Requests:
    """Words the requests to one engine. `tiles` bounds each picture's tiles; None leaves that to the engine."""

    def __init__(self, tiles: int | None) -> None:
        self._tiles = tiles
        self._data_urls = _DataUrls(_DATA_URL_BYTES)

    def of(self, prompt: Prompt, model: str) -> dict[str, Any]:
        """The keyword arguments of the streamed chat completion; the system message always stands first."""
        sampling = prompt.sampling
        request: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": system_text(prompt.system)},
                *({"role": turn.role.value, "content": self._content(turn)} for turn in prompt.turns),
            ],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Not in OpenAI's API: named always, because servers differ in what they take without it.
            "extra_body": {"top_k": sampling.top_k},
            "max_tokens": sampling.max_new_tokens,
            "user": prompt.chat,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        return request

    def _content(self, turn: Turn) -> str | list[dict[str, Any]]:
        """A plain text where there are no pictures: not every server takes parts from an assistant."""
        if not turn.pictures:
            return "".join(part for part in parts(turn) if isinstance(part, str))
        return [
            {"type": "text", "text": part} if isinstance(part, str) else self._picture(part) for part in parts(turn)
        ]

    def _picture(self, picture: Picture) -> dict[str, Any]:
        image: dict[str, Any] = {"url": self._data_urls.of(picture)}
        if self._tiles is not None:
            image["max_dynamic_patch"] = self._tiles
        return {"type": "image_url", "image_url": image}


class _DataUrls:
    """Data URLs of recent pictures by sha256: a picture stays in a conversation for many turns."""

    def __init__(self, limit: int) -> None:
        self._urls: LRUCache[str, str] = LRUCache(limit, len)

    def of(self, picture: Picture) -> str:
        key = f"{picture.media_type}:{picture.sha256}"
        url = self._urls.get(key)
        if url is None:
            url = f"data:{picture.media_type};base64,{b64encode(picture.data).decode()}"
            if len(url) <= self._urls.maxsize:
                self._urls[key] = url
        return url
