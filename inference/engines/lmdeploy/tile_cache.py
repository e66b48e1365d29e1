"""Cache of decoded and tiled pictures for lmdeploy, filled by many threads.

On every turn, lmdeploy 0.18.0 decodes, tiles and hashes all pictures of the conversation again, in one
thread (vl/engine.py). This cache stores tiles under the SHA-256 digest of the encoded picture and evicts
the least recently used tiles first. The digest also yields the fingerprint by which TurboMind's prefix
cache identifies the picture. The tiles are bit-for-bit identical to those of
inference/internvl2/tiles.py and lmdeploy's InternVLVisionModel.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, TypeVar

import torch
from cachetools import LRUCache
from PIL import Image

from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD

_T = TypeVar("_T")

_URLS: Final = 4096
"""The number of data: URLs whose digest is remembered; an entry takes about 200 bytes."""

_BANDS: Final = 4
"""The number of bands of rows that are resized in parallel."""


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
        limit: The maximum size of the cached tiles in bytes.
        threads: The number of threads that decode and tile pictures.

    Attributes:
        hits: The number of requests for pictures that were cached or in preparation.
        misses: The number of requests for all other pictures.
    """

    def __init__(self, tiling: Tiling, *, dtype: torch.dtype, limit: int, threads: int) -> None:
        self.tiling = tiling
        self._dtype = dtype
        self.hits = 0
        self.misses = 0
        self._tilers = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="digests")
        # Few pictures at a time, each by several threads, so that the first ones are ready early.
        self._slots = asyncio.Semaphore(max(threads // 3, 1))
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
        async with self._slots:
            if not data:
                # The URL's digest was known, but the tiles were evicted.
                _, data = await asyncio.get_running_loop().run_in_executor(self._readers, _read, url)
            tiling = replace(self.tiling, max_tiles=key[1])
            return await prepare(data, key[0], tiling, self._dtype, self._tilers)

    def _on_prepared(self, key: tuple[bytes, int], done: asyncio.Task[Prepared]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception() is not None:
            return
        prepared = done.result()
        if prepared.pixels.nbytes <= self._cached.maxsize:
            self._cached[key] = prepared


async def prepare(
    data: bytes, digest: bytes, tiling: Tiling, dtype: torch.dtype, threads: ThreadPoolExecutor
) -> Prepared:
    """Decode, tile and normalize a picture in several threads.

    Pillow resizes in two passes, first each row, then each column. Bands of rows, and then the columns of
    tiles, can therefore be resized separately with identical results.

    Raises:
        PictureError: The picture cannot be read.
    """
    loop = asyncio.get_running_loop()

    def run(work: Callable[..., _T], *inputs: Any) -> asyncio.Future[_T]:
        return loop.run_in_executor(threads, work, *inputs)

    picture = await run(open_picture, data)
    columns, rows = tiling.grid(*picture.size)
    side = tiling.side
    cut = columns * rows
    several = tiling.thumbnail and cut > 1
    pixels = torch.empty((cut + several, 3, side, side), dtype=dtype)
    thumbnail = run(_thumbnail, picture, pixels[-1]) if several else None
    edges = [picture.height * band // _BANDS for band in range(_BANDS + 1)]
    bands = await asyncio.gather(
        *(run(_widened, picture, top, end, columns * side) for top, end in pairwise(edges) if end > top)
    )
    await asyncio.gather(*(run(_column, bands, column, pixels[column:cut:columns]) for column in range(columns)))
    if thumbnail is not None:
        await thumbnail
    # With another tile limit, the prefix cache must treat it as a different picture.
    fingerprint = sha256(digest + tiling.max_tiles.to_bytes(2, "big")).digest()
    return Prepared(pixels, picture.size, fingerprint)


def _widened(picture: Image.Image, top: int, end: int, width: int) -> Image.Image:
    """Return the picture's rows from `top` to `end`, resized to `width`, the width of the tile grid in pixels."""
    return picture.crop((0, top, picture.width, end)).resize((width, end - top), Image.Resampling.BICUBIC)


def _column(bands: Sequence[Image.Image], column: int, out: torch.Tensor) -> None:
    """Write the tiles of one column of the grid into `out` [rows, 3, S, S]."""
    side = out.shape[-1]
    narrow = Image.new("RGB", (side, sum(band.height for band in bands)))
    top = 0
    for band in bands:
        narrow.paste(band.crop((column * side, 0, (column + 1) * side, band.height)), (0, top))
        top += band.height
    tall = narrow.resize((side, len(out) * side), Image.Resampling.BICUBIC)
    _normalize(tall, out)


def _thumbnail(picture: Image.Image, out: torch.Tensor) -> None:
    side = out.shape[-1]
    _normalize(picture.resize((side, side), Image.Resampling.BICUBIC), out[None])


def _normalize(tall: Image.Image, out: torch.Tensor) -> None:
    """Write vertically stacked square tiles into `out` [T, 3, S, S], normalized as in `tiles.pixel_values`."""
    side = out.shape[-1]
    raw = torch.frombuffer(bytearray(tall.tobytes()), dtype=torch.uint8).view(-1, side, side, 3)
    for tile, planes in zip(raw, out, strict=True):
        for channel, plane in enumerate(planes):
            values = tile[..., channel].float().div_(255)
            plane.copy_(values.sub_(IMAGENET_MEAN[channel]).div_(IMAGENET_STD[channel]))


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
