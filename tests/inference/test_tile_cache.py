"""lmdeploy's tile cache cuts tiles as Pillow does, prepares each picture only once and has a limit in bytes."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.photos import photo
from benchmarks.tiling import difference, grey_levels
from inference.engines.lmdeploy import gpu_tiling
from inference.engines.lmdeploy.tile_cache import TileCache, prepare
from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles
from inference.messages import PictureError

TILING = Tiling(side=112, tokens=16)
TILE_BYTES = 3 * 112 * 112 * 2
CPU = torch.device("cpu")


def encoded(size: tuple[int, int], seed: int = 0, kind: str = "JPEG") -> bytes:
    dice = Random(seed)
    coarse = Image.frombytes("RGB", (9, 7), dice.randbytes(9 * 7 * 3))
    buffer = io.BytesIO()
    coarse.resize(size).save(buffer, kind)
    return buffer.getvalue()


def url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("max_tiles", [1, 6, 12])
@pytest.mark.parametrize("size", [(640, 480), (112, 112), (336, 224), (900, 100), (1, 500), (3, 2), (1280, 961)])
def test_tiles_are_within_one_grey_level_of_pillows(size: tuple[int, int], max_tiles: int) -> None:
    """Enlarged and reduced, all tiles and the thumbnail have Pillow's grey levels, give or take one."""
    data = photo(size, Random(1))
    tiling = replace(TILING, max_tiles=max_tiles)
    found = prepare(data, b"digest", tiling, torch.float32, CPU)
    wanted = pixel_values(tiles(open_picture(data), tiling))
    assert found.pixels.shape == wanted.shape
    assert difference(grey_levels(found.pixels), grey_levels(wanted))["largest"] <= 1
    assert found.size == size


def test_a_large_picture_is_tiled_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles are the same, however many rows are resized at once."""
    data = photo((700, 401), Random(1))
    whole = prepare(data, b"digest", TILING, torch.float32, CPU)
    monkeypatch.setattr(gpu_tiling, "_BAND_PIXELS", 700 * 50)
    assert torch.equal(prepare(data, b"digest", TILING, torch.float32, CPU).pixels, whole.pixels)


async def test_a_picture_is_prepared_once() -> None:
    """Concurrent and later requests for a picture prepare it once and share its pixels."""
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=2**30, threads=3)
    data = encoded((300, 200))
    first, *others = await asyncio.gather(*(cache.get(url(data)) for _ in range(8)))
    assert (cache.misses, cache.hits) == (1, 7)
    assert all(other.pixels is first.pixels for other in [*others, await cache.get(url(data))])
    item, again = first.item(16, 5), first.item(16, 5)
    assert item is not again
    assert item["pixel_values"] is again["pixel_values"]
    assert item["image_tokens"] == 16 * first.pixels.shape[0]


async def test_fingerprints_identify_pictures() -> None:
    """A different picture or tile limit gives a different fingerprint; the same file and limit, the same one."""
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=2**30, threads=2)
    one, other = url(encoded((300, 200), 1)), url(encoded((300, 200), 2))
    prints = [(await cache.get(each, most)).fingerprint for each in (one, other) for most in (4, 12)]
    assert len({*prints}) == 4
    assert (
        await TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=0, threads=1).get(one, 4)
    ).fingerprint == prints[0]
    assert all(len(each) == 32 for each in prints)


async def test_the_least_recently_used_is_evicted_first() -> None:
    """The cache stays within its limit and evicts the least recently used picture first."""
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=2 * TILE_BYTES, threads=2)
    pictures = [url(encoded((112, 112), seed)) for seed in range(3)]
    for each in (pictures[0], pictures[1], pictures[0], pictures[2]):
        await cache.get(each)
    assert cache.size == 2 * TILE_BYTES
    misses = cache.misses
    await cache.get(pictures[0])
    assert cache.misses == misses
    await cache.get(pictures[1])
    assert cache.misses == misses + 1


async def test_an_evicted_picture_is_decoded_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data URL is decoded in a reader thread, both the first time and after an eviction."""
    decoded_by: list[str] = []

    def decoding(*arguments: Any, **more: Any) -> bytes:
        decoded_by.append(threading.current_thread().name)
        return base64.b64decode(*arguments, **more)

    monkeypatch.setattr("inference.engines.lmdeploy.tile_cache.b64decode", decoding)
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=0, threads=1)
    for _ in range(2):
        await cache.get(url(encoded((112, 112))))
    assert cache.misses == len(decoded_by) == 2
    assert all(name.startswith("digests") for name in decoded_by)


async def test_a_cancelled_request_does_not_cancel_others() -> None:
    """If one request for a picture is cancelled, the preparation continues for the other requests."""
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=2**30, threads=1)
    data = url(encoded((900, 700)))
    cancelled, waiting = (asyncio.ensure_future(cache.get(data)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await waiting).pixels.shape[0] > 1
    assert cache.misses == 1


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("data:image/jpeg;base64,@@@@", ValueError),
        ("data:image/jpeg,plain", ValueError),
        (url(b"no picture"), PictureError),
        (url(encoded((300, 200))[:-200]), PictureError),
    ],
)
async def test_bad_pictures_are_refused_and_not_cached(broken: str, error: type[Exception]) -> None:
    """Invalid base64 and broken pictures raise an error each time and are not cached.

    A valid picture requested afterwards is still prepared.
    """
    cache = TileCache(TILING, dtype=torch.bfloat16, device=CPU, limit=2**30, threads=2)
    for _ in range(2):
        with pytest.raises(error):
            await cache.get(broken)
    assert cache.size == 0
    assert (await cache.get(url(encoded((112, 112))))).pixels.shape[0] == 1
