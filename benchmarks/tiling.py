"""Compare ways to decode a picture and cut it into tiles: on the processor, on the card, and on both.

    taskset -c 0-3 python -m benchmarks.tiling [--pictures N] [--threads 1,4] [--device cuda|cpu]

- `pillow`: lmdeploy's worker as it is (`tile_cache.prepare`), and a copy of the tiles to the device.
- `nvjpeg`: torchvision decodes on the card (nvJPEG), and the card resizes and normalizes (`CardTiler`).
- `hybrid`: Pillow decodes, the decoded pixels are copied to the device, and the card does the rest.

The pictures are JPEGs of the sizes in photos.py, and those that peers/load.py sends. `taskset` limits the
processor's cores. The script prints a JSON object for each picture size and way:

- `ms`: The median time for a picture, one at a time, until its tiles are on the device.
- `threads`: For each number of threads, the pictures per second and the processor's milliseconds per picture.
- `batch`: The same for `nvjpeg` with all pictures decoded by one call.
- `decode_ms`, `tile_ms`: The time that Pillow takes to decode a picture, and that the device takes to resize and
  normalize it.
- `back_ms`: The time to copy the tiles to main memory, pageable and pinned.
- `tiles`: The largest difference of the tiles from those of `pillow` in grey levels (0 to 255), and the share of
  values that differ; for `nvjpeg`, also `decoded`, the same for the decoded pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch.nn.functional import interpolate

from benchmarks.peers.load import picture
from benchmarks.photos import SIZES, photo
from inference.engines.lmdeploy.tile_cache import Prepared, prepare
from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD

Way = Callable[[bytes], torch.Tensor]
"""A function that returns the tiles of an encoded picture."""


class CardTiler:
    """Tiling with torch, on a GPU or the CPU, of pictures that are decoded already.

    As in Pillow, a picture is resized in two passes, first each row, then each column, and both are rounded to
    whole grey levels. The tiles of photos differ from Pillow's by one grey level at most. With sharp noise, the
    difference is larger if the height shrinks more than the width, because Pillow 13 then begins with the columns.

    Args:
        tiling: The model's tiling.
        dtype: The data type of the pixel values.
        device: The device on which the pictures are.
    """

    def __init__(self, tiling: Tiling, dtype: torch.dtype, device: torch.device) -> None:
        self._tiling, self._dtype = tiling, dtype
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)

    def tiles(self, decoded: torch.Tensor) -> torch.Tensor:
        """Return the tiles [T, 3, S, S] of a picture [3, height, width] in uint8, normalized."""
        side = self._tiling.side
        columns, rows = self._tiling.grid(decoded.shape[2], decoded.shape[1])
        levels = decoded[None].to(torch.float32, memory_format=torch.contiguous_format)
        grid = _resized(levels, rows * side, columns * side).view(3, rows, side, columns, side)
        found = grid.permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        if self._tiling.thumbnail and len(found) > 1:
            found = torch.cat([found, _resized(levels, side, side)])
        return found.div_(255).sub_(self._mean).div_(self._std).to(self._dtype)


def _resized(levels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    for size in ((levels.shape[2], width), (height, width)):
        # With antialiasing, torch's kernel is Pillow's (Keys' cubic with a = -0.5, widened to shrink).
        levels = interpolate(levels, size, mode="bicubic", antialias=True).add_(0.5).floor_().clamp_(0, 255)
    return levels


def pixels_of(data: bytes) -> torch.Tensor:
    """Return a picture, decoded by Pillow, as a view [3, height, width] in uint8."""
    image = open_picture(data)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, -1, 3).permute(2, 0, 1)


def decode_on_card(encoded: list[bytes]) -> list[torch.Tensor]:
    """Decode JPEGs with nvJPEG.

    Raises:
        ImportError: torchvision is not installed.
        AttributeError, RuntimeError: torchvision lacks its image library or nvJPEG, or a picture cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped, unused-ignore]

    buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    decoded: list[torch.Tensor] = decode_jpeg(buffers, mode=ImageReadMode.RGB, device="cuda")
    return decoded


async def prepare_all(
    encoded: Iterable[bytes], tiling: Tiling, dtype: torch.dtype, pool: ThreadPoolExecutor, threads: int
) -> list[Prepared]:
    """Prepare pictures as `TileCache` does: few at a time, each in several threads."""
    slots = asyncio.Semaphore(max(threads // 3, 1))

    async def one(data: bytes) -> Prepared:
        async with slots:
            return await prepare(data, b"", tiling, dtype, pool)

    return await asyncio.gather(*map(one, encoded))


def grey_levels(tiles: torch.Tensor) -> torch.Tensor:
    """Return the grey levels, 0 to 255, of normalized float32 tiles [T, 3, S, S]."""
    mean, std = (torch.tensor(each, device=tiles.device).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (tiles * std + mean).mul(255).round()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Return the largest difference of two tensors of grey levels, and the share of values that differ."""
    gap = (found.float().cpu() - wanted.float().cpu()).abs()
    return {"largest": int(gap.max()), "share": round(float((gap > 0).float().mean()), 6)}


class Comparison:
    """The measurements of all ways, for pictures of one size.

    Args:
        name: The name of the pictures in the output.
        encoded: The pictures, as JPEGs.
        threads: The numbers of threads.
        device: The device on which the tiles are needed.
    """

    def __init__(self, name: str, encoded: list[bytes], threads: Sequence[int], device: torch.device) -> None:
        self._name, self._encoded, self._threads, self._device = name, encoded, threads, device
        self._tiling = Tiling()
        self._tiler = CardTiler(self._tiling, torch.bfloat16, device)
        self._exact = CardTiler(self._tiling, torch.float32, device)
        with ThreadPoolExecutor(1) as pool:
            (first,) = asyncio.run(prepare_all(encoded[:1], self._tiling, torch.float32, pool, 1))
        self._wanted = grey_levels(first.pixels)

    def pillow(self) -> dict[str, Any]:
        """Measure lmdeploy's worker as it is."""

        def on_threads(encoded: list[bytes], threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                for each in asyncio.run(prepare_all(encoded, self._tiling, torch.bfloat16, pool, threads)):
                    each.pixels.to(self._device)

        times = [self._seconds(partial(on_threads, [data], max(self._threads))) for data in self._encoded]
        return self._report("pillow", times, on_threads)

    def hybrid(self) -> dict[str, Any]:
        """Measure decoding by Pillow, and tiling on the device."""
        decoded = pixels_of(self._encoded[0]).to(self._device)
        found = self._pictures_apart("hybrid", lambda data: self._tiler.tiles(pixels_of(data).to(self._device)))
        tiles = self._tiler.tiles(decoded)
        found["decode_ms"] = self._median_ms(lambda: pixels_of(self._encoded[0]))
        found["tile_ms"] = self._median_ms(lambda: self._tiler.tiles(decoded))
        if self._device.type == "cuda":
            pinned = torch.empty(tiles.shape, dtype=tiles.dtype, pin_memory=True)
            found["back_ms"] = [self._median_ms(tiles.cpu), self._median_ms(lambda: pinned.copy_(tiles))]
        return found | {"tiles": difference(grey_levels(self._exact.tiles(decoded)), self._wanted)}

    def nvjpeg(self) -> dict[str, Any]:
        """Measure decoding and tiling on the card."""
        found = self._pictures_apart("nvjpeg", lambda data: self._tiler.tiles(decode_on_card([data])[0]))
        found["batch"] = self._rate(lambda: [self._tiler.tiles(each) for each in decode_on_card(self._encoded)])
        (decoded,) = decode_on_card(self._encoded[:1])
        return found | {
            "tiles": difference(grey_levels(self._exact.tiles(decoded)), self._wanted),
            "decoded": difference(decoded, pixels_of(self._encoded[0])),
        }

    def _pictures_apart(self, name: str, way: Way) -> dict[str, Any]:
        """Measure a way in which one thread prepares a picture."""

        def on_threads(encoded: list[bytes], threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(way, encoded))

        way(self._encoded[0])
        return self._report(name, [self._seconds(partial(way, data)) for data in self._encoded], on_threads)

    def _report(
        self, name: str, times: Sequence[float], on_threads: Callable[[list[bytes], int], None]
    ) -> dict[str, Any]:
        rates = {each: self._rate(partial(on_threads, self._encoded, each)) for each in self._threads}
        case = {"pictures": self._name, "tiles_each": len(self._wanted), "way": name}
        return case | {"ms": round(statistics.median(times) * 1e3, 2), "threads": rates}

    def _rate(self, work: Callable[[], object]) -> dict[str, float]:
        used = time.process_time()
        seconds = self._seconds(work)
        used = time.process_time() - used
        count = len(self._encoded)
        return {"per_second": round(count / seconds, 1), "cpu_ms": round(used / count * 1e3, 2)}

    def _median_ms(self, work: Callable[[], object]) -> float:
        return round(statistics.median(self._seconds(work) for _ in range(10)) * 1e3, 2)

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=24, help="pictures of each size (default: 24)")
    parser.add_argument("--threads", default="1,4", help="numbers of threads, separated by commas (default: 1,4)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    threads = [int(each) for each in options.threads.split(",")]
    device = torch.device(options.device)
    # As in the worker, where many threads tile pictures at once.
    torch.set_num_threads(1)
    ways = ["pillow", "hybrid"]
    if device.type == "cuda":
        try:
            decode_on_card([photo((64, 64), random.Random(0))])
            ways.append("nvjpeg")
        except (ImportError, AttributeError, RuntimeError) as error:
            sys.stderr.write(f"nvjpeg is left out, because torchvision cannot decode on this card: {error}\n")
    dice = random.Random(0)
    cases = {f"photos {size[0]}x{size[1]}": [photo(size, dice) for _ in range(options.pictures)] for size in SIZES}
    sent = (picture(seed).partition(",")[2] for seed in range(options.pictures))
    cases["peers 1280x960"] = [b64decode(each) for each in sent]
    for name, encoded in cases.items():
        comparison = Comparison(name, encoded, threads, device)
        for way in ways:
            sys.stdout.write(json.dumps(getattr(comparison, way)()) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
