"""Pictures on their way into lmdeploy: decoded and tiled once, by many threads, known by their digest.

Stock lmdeploy decodes, tiles and hashes every picture of a conversation again on every turn, in one thread. Here a
picture's tiles are kept (least recently used first out, bounded in bytes) under the sha256 of its encoded bytes,
and that digest goes along as the fingerprint by which TurboMind's prefix cache knows the picture. The tiles are
those of inference/internvl2/tiles.py, bit for bit what lmdeploy's own InternVLVisionModel makes.

Knows data URLs, tiles and threads. Knows lmdeploy's messages only by the fields of `Prepared.item`; what of lmdeploy
is replaced stands in lmdeploy_server.py.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import pybase64
import torch

from inference.internvl2.tiles import pixel_values, tiles
from inference.pictures import open_picture

_URLS: Final = 4096
"""So many data URLs are known by their own digest; an entry takes some 200 bytes."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a model wants its pictures: the numbers of its configuration. `most` is the default of tiles a picture."""

    image_size: int
    least: int
    most: int
    thumbnail: bool
    tokens_per_tile: int
    picture_token: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture's tiles [T, 3, S, S], ready for the vision tower, and what they are known by."""

    pixels: torch.Tensor
    size: tuple[int, int]
    fingerprint: bytes

    def item(self, tiling: Tiling) -> dict[str, Any]:
        """A fresh entry of lmdeploy's "preprocess" message; the pixels are shared, never copied."""
        return {
            "pixel_values": self.pixels,
            "image_tokens": self.pixels.shape[0] * tiling.tokens_per_tile,
            "image_token_id": tiling.picture_token,
            "image_size": self.size,
            "fingerprint": self.fingerprint,
        }


class TileCache:
    """Prepared pictures, made by `threads` threads, the newest `limit` bytes of them kept.

    Used from one event loop. `hits` and `misses` count pictures asked for, `size` is bytes now. Who asks for a
    picture that is just being prepared waits for that one preparation.
    """

    def __init__(self, tiling: Tiling, *, limit: int, threads: int) -> None:
        self.tiling = tiling
        self.hits = 0
        self.misses = 0
        self.size = 0
        self._limit = limit
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._kept: OrderedDict[tuple[bytes, int], Prepared] = OrderedDict()
        self._coming: dict[tuple[bytes, int], asyncio.Future[Prepared]] = {}
        self._urls: OrderedDict[bytes, bytes] = OrderedDict()

    async def of(self, url: str, most: int | None = None) -> Prepared:
        """The picture of a `data:` URL, at most `most` tiles and a thumbnail (None: as the model's configuration).

        Raises ValueError for broken base64 and PictureError for bytes that are no picture.
        """
        known = sha256(url.encode()).digest()
        digest = self._urls.get(known)
        data = b""
        if digest is None:
            data = _decoded(url)
            digest = sha256(data).digest()
        self._urls[known] = digest
        self._urls.move_to_end(known)
        if len(self._urls) > _URLS:
            self._urls.popitem(last=False)
        key = (digest, most or self.tiling.most)
        if (kept := self._kept.get(key)) is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return kept
        if (coming := self._coming.get(key)) is not None:
            self.hits += 1
            return await asyncio.shield(coming)
        self.misses += 1
        work: Callable[[], Prepared] = lambda: prepare(data or _decoded(url), digest, key[1], self.tiling)  # noqa: E731
        coming = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._threads, work))
        self._coming[key] = coming
        coming.add_done_callback(lambda done: self._came(key, done))
        # Shielded: the picture of somebody who leaves is still the picture of somebody else who waits.
        return await asyncio.shield(coming)

    def _came(self, key: tuple[bytes, int], done: asyncio.Future[Prepared]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None:
            return
        prepared = self._kept[key] = done.result()
        self.size += prepared.pixels.nbytes
        while self.size > self._limit and self._kept:
            self.size -= self._kept.popitem(last=False)[1].pixels.nbytes


def prepare(data: bytes, digest: bytes, most: int, tiling: Tiling) -> Prepared:
    """Decode, tile, normalise. Raises PictureError. Most of it runs without Python's global lock."""
    picture = open_picture(data)
    cut = tiles(
        picture,
        image_size=tiling.image_size,
        min_num=tiling.least,
        max_num=most,
        use_thumbnail=tiling.thumbnail,
    )
    pixels = torch.empty((len(cut), 3, tiling.image_size, tiling.image_size), dtype=tiling.dtype)
    # A tile at a time stays in the processor's cache; all at once would pass 30 MB through memory four times.
    for place, tile in zip(pixels, cut, strict=True):
        place.copy_(pixel_values([tile])[0])
    # The same picture in another number of tiles is another picture to a prefix cache.
    fingerprint = sha256(digest + most.to_bytes(2, "big")).digest()
    return Prepared(pixels, picture.size, fingerprint)


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("a picture must be a data: URL in base64 (data:image/jpeg;base64,…)")
    return pybase64.b64decode(body, validate=True)
