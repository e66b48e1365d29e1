"""Pictures on their way into lmdeploy: decoded and tiled once, by many threads, known by their digest.

Stock lmdeploy decodes, tiles and hashes every picture of a conversation again on every turn, in one thread. Here a
picture's tiles are kept (least recently used first out, bounded in bytes) under the sha256 of its encoded bytes,
and that digest goes along as the fingerprint by which TurboMind's prefix cache knows the picture. The tiles are
those of inference/internvl2/tiles.py, bit for bit what lmdeploy's own InternVLVisionModel makes.

Knows data URLs, tiles and threads. Knows lmdeploy's messages only by the fields of `Prepared.item`; what of lmdeploy
is replaced stands in lmdeploy_parts.py.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, TypeVar

import torch
from cachetools import LRUCache
from PIL import Image

from inference.images.opening import open_picture
from inference.internvl2.grids import grid
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD

_T = TypeVar("_T")

_URLS: Final = 4096
"""So many data URLs are known by their own digest; an entry takes some 200 bytes."""

_BANDS: Final = 4
"""A picture's rows are stretched in so many parts."""


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

    Used from one event loop. `hits` and `misses` count pictures asked for. Who asks for a picture that is just being
    prepared waits for that one preparation.
    """

    def __init__(self, tiling: Tiling, *, limit: int, threads: int) -> None:
        self.tiling = tiling
        self.hits = 0
        self.misses = 0
        self._cutters = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="digests")
        # Few pictures at a time, each by several threads: the first ones are ready while the rest still wait.
        self._places = asyncio.Semaphore(max(threads // 3, 1))
        self._kept: LRUCache[tuple[bytes, int], Prepared] = LRUCache(limit, lambda kept: kept.pixels.nbytes)
        self._coming: dict[tuple[bytes, int], asyncio.Task[Prepared]] = {}
        self._urls: LRUCache[bytes, bytes] = LRUCache(_URLS)

    @property
    def size(self) -> int:
        """Bytes of tiles that are kept."""
        return int(self._kept.currsize)

    async def of(self, url: str, most: int | None = None) -> Prepared:
        """The picture of a `data:` URL, at most `most` tiles and a thumbnail (None: as the model's configuration).

        Raises ValueError for broken base64 and PictureError for bytes that are no picture.
        """
        loop = asyncio.get_running_loop()
        known = await loop.run_in_executor(self._readers, lambda: sha256(url.encode()).digest())
        data = b""
        if known not in self._urls:
            self._urls[known], data = await loop.run_in_executor(self._readers, _read, url)
        key = (self._urls[known], most or self.tiling.most)
        if (kept := self._kept.get(key)) is not None:
            self.hits += 1
            return kept
        coming = self._coming.get(key)
        if coming is None:
            self.misses += 1
            coming = self._coming[key] = asyncio.ensure_future(self._prepare(url, data, key))
            coming.add_done_callback(lambda done: self._came(key, done))
        else:
            self.hits += 1
        # Shielded: the picture of somebody who leaves may be that of somebody else who waits.
        return await asyncio.shield(coming)

    async def _prepare(self, url: str, data: bytes, key: tuple[bytes, int]) -> Prepared:
        async with self._places:
            if not data:
                # Its URL is known, its tiles have gone.
                _, data = await asyncio.get_running_loop().run_in_executor(self._readers, _read, url)
            return await prepare(data, *key, self.tiling, self._cutters)

    def _came(self, key: tuple[bytes, int], done: asyncio.Task[Prepared]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None:
            return
        prepared = done.result()
        if prepared.pixels.nbytes <= self._kept.maxsize:
            self._kept[key] = prepared


async def prepare(data: bytes, digest: bytes, most: int, tiling: Tiling, threads: ThreadPoolExecutor) -> Prepared:
    """Decode, tile, normalise: one picture by several threads. Raises PictureError.

    Pillow resizes in two passes, first every row by itself, then every column. So bands of rows can be stretched
    apart, and then the columns of tiles, with not a bit of difference.
    """
    loop = asyncio.get_running_loop()

    def run(work: Callable[..., _T], *inputs: Any) -> asyncio.Future[_T]:
        return loop.run_in_executor(threads, work, *inputs)

    picture = await run(open_picture, data)
    columns, rows = grid(*picture.size, image_size=tiling.image_size, min_num=tiling.least, max_num=most)
    cut = columns * rows
    several = tiling.thumbnail and cut > 1
    pixels = torch.empty((cut + several, 3, tiling.image_size, tiling.image_size), dtype=tiling.dtype)
    thumbnail = run(_thumbnail, picture, pixels[-1], tiling) if several else None
    edges = [picture.height * band // _BANDS for band in range(_BANDS + 1)]
    bands = await asyncio.gather(
        *(run(_stretched, picture, top, end, columns * tiling.image_size) for top, end in pairwise(edges) if end > top)
    )
    await asyncio.gather(
        *(run(_column, bands, column, pixels[column:cut:columns], tiling) for column in range(columns))
    )
    if thumbnail is not None:
        await thumbnail
    # The same picture in another number of tiles is another picture to a prefix cache.
    fingerprint = sha256(digest + most.to_bytes(2, "big")).digest()
    return Prepared(pixels, picture.size, fingerprint)


def _stretched(picture: Image.Image, top: int, end: int, width: int) -> Image.Image:
    """The rows from `top` to `end`, as wide as the grid."""
    return picture.crop((0, top, picture.width, end)).resize((width, end - top), Image.Resampling.BICUBIC)


def _column(bands: Sequence[Image.Image], column: int, places: torch.Tensor, tiling: Tiling) -> None:
    """Put one column of tiles into `places` [rows, 3, S, S]."""
    side = tiling.image_size
    narrow = Image.new("RGB", (side, sum(band.height for band in bands)))
    top = 0
    for band in bands:
        narrow.paste(band.crop((column * side, 0, (column + 1) * side, band.height)), (0, top))
        top += band.height
    tall = narrow.resize((side, len(places) * side), Image.Resampling.BICUBIC)
    _normalise(tall, places)


def _thumbnail(picture: Image.Image, place: torch.Tensor, tiling: Tiling) -> None:
    side = tiling.image_size
    _normalise(picture.resize((side, side), Image.Resampling.BICUBIC), place[None])


def _normalise(tall: Image.Image, places: torch.Tensor) -> None:
    """Square tiles that stand on one another → [T, 3, S, S], as `tiles.pixel_values` does; a plane at a time."""
    side = places.shape[-1]
    raw = torch.frombuffer(bytearray(tall.tobytes()), dtype=torch.uint8).view(-1, side, side, 3)
    for tile, place in zip(raw, places, strict=True):
        for channel, plane in enumerate(place):
            values = tile[..., channel].float().div_(255)
            plane.copy_(values.sub_(IMAGENET_MEAN[channel]).div_(IMAGENET_STD[channel]))


def _read(url: str) -> tuple[bytes, bytes]:
    """The sha256 of the encoded picture, and its bytes. Raises ValueError."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("a picture must be a data: URL in base64 (data:image/jpeg;base64,…)")
    data = b64decode(body, validate=True)
    return sha256(data).digest(), data
