"""Cache of picture tiles for lmdeploy; many threads decode the pictures, and the GPU cuts them into tiles.

On every turn, lmdeploy 0.18.0 decodes, tiles and hashes all pictures of the conversation in one
thread (vl/engine.py). This cache stores tiles in main memory under the SHA-256 digest of the encoded picture
and evicts the least recently used tiles first. The digest also yields the fingerprint by which TurboMind's
prefix cache identifies the picture.
"""

from __future__ import annotations

import asyncio
import threading
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

import torch
from cachetools import LRUCache

from inference.engines.lmdeploy.gpu_tiling import as_tensor, cut
from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling

_URLS: Final = 4096
"""The number of data: URLs whose digest is remembered; an entry takes about 200 bytes."""

_card: Final = threading.Lock()
"""Held while the GPU tiles a picture, so that the memory for one picture is enough."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture's tiles [T, 3, S, S], ready for the vision tower, and its fingerprint."""

    pixels: torch.Tensor
    size: tuple[int, int]
    fingerprint: bytes

    def item(self, tokens_per_tile: int, picture_token: int) -> dict[str, Any]:
        """Return a new item for lmdeploy's "preprocess" message; the pixels are shared, not copied."""
        return {
            "pixel_values": self.pixels,
            "image_tokens": self.pixels.shape[0] * tokens_per_tile,
            "image_token_id": picture_token,
            "image_size": self.size,
            "fingerprint": self.fingerprint,
        }


class TileCache:
    """Cache of prepared pictures; concurrent requests for the same picture share one preparation.

    The cache may be used in one event loop only.

    Args:
        tiling: The model's tiling.
        dtype: The data type of the pixel values.
        device: The device that tiles pictures.
        limit: The maximum size of the cached tiles in bytes.
        threads: The number of threads that decode pictures.

    Attributes:
        hits: The number of requests for pictures that were cached or in preparation.
        misses: The number of requests for all other pictures.
    """

    def __init__(self, tiling: Tiling, *, dtype: torch.dtype, device: torch.device, limit: int, threads: int) -> None:
        self.tiling = tiling
        self._dtype, self._device = dtype, device
        self.hits = 0
        self.misses = 0
        self._tilers = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="digests")
        self._cached: LRUCache[tuple[bytes, int], Prepared] = LRUCache(limit, lambda prepared: prepared.pixels.nbytes)
        self._pending: dict[tuple[bytes, int], asyncio.Task[Prepared]] = {}
        self._urls: LRUCache[bytes, bytes] = LRUCache(_URLS)

    @property
    def size(self) -> int:
        """Size of the cached tiles in bytes."""
        return int(self._cached.currsize)

    async def get(self, url: str, max_tiles: int | None = None) -> Prepared:
        """Return the picture in a data: URL, prepared for the vision tower.

        Args:
            url: The data: URL.
            max_tiles: The maximum number of tiles, not counting the thumbnail, or None for the model's own
                limit.

        Raises:
            ValueError: The URL is not a base64 data: URL.
            PictureError: The data is not a picture.
        """
        loop = asyncio.get_running_loop()
        url_digest = await loop.run_in_executor(self._readers, lambda: sha256(url.encode()).digest())
        data = b""
        if url_digest not in self._urls:
            self._urls[url_digest], data = await loop.run_in_executor(self._readers, _read, url)
        key = (self._urls[url_digest], max_tiles or self.tiling.max_tiles)
        if (prepared := self._cached.get(key)) is not None:
            self.hits += 1
            return prepared
        task = self._pending.get(key)
        if task is None:
            self.misses += 1
            task = self._pending[key] = asyncio.ensure_future(self._prepare(url, data, key))
            task.add_done_callback(lambda done: self._on_prepared(key, done))
        else:
            self.hits += 1
        # Shielded, because another request may wait for the same task.
        return await asyncio.shield(task)

    async def _prepare(self, url: str, data: bytes, key: tuple[bytes, int]) -> Prepared:
        loop = asyncio.get_running_loop()
        if not data:
            # The URL's digest was known, but the tiles were evicted.
            _, data = await loop.run_in_executor(self._readers, _read, url)
        tiling = replace(self.tiling, max_tiles=key[1])
        return await loop.run_in_executor(self._tilers, prepare, data, key[0], tiling, self._dtype, self._device)

    def _on_prepared(self, key: tuple[bytes, int], done: asyncio.Task[Prepared]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception() is not None:
            return
        prepared = done.result()
        if prepared.pixels.nbytes <= self._cached.maxsize:
            self._cached[key] = prepared


def prepare(data: bytes, digest: bytes, tiling: Tiling, dtype: torch.dtype, device: torch.device) -> Prepared:
    """Decode a picture, and tile and normalize it on `device`.

    Raises:
        PictureError: The picture cannot be read.
    """
    picture = open_picture(data)
    decoded = as_tensor(picture)
    with _card:
        pixels = cut(decoded.to(device), tiling).to(dtype).cpu()
    # With a different tile limit, a picture has different features, so its fingerprint must differ too.
    fingerprint = sha256(digest + tiling.max_tiles.to_bytes(2, "big")).digest()
    return Prepared(pixels, picture.size, fingerprint)


def _read(url: str) -> tuple[bytes, bytes]:
    """Return the SHA-256 digest and the bytes of the picture in a data: URL.

    Raises:
        ValueError: The URL is not a base64 data: URL.
    """
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("a picture must be a data: URL in base64 (data:image/jpeg;base64,…)")
    data = b64decode(body, validate=True)
    return sha256(data).digest(), data
