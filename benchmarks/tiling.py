"""Compare methods of decoding a picture and cutting it into tiles: on the CPU, on the GPU, and on both.

    taskset -c 0-3 python -m benchmarks.tiling [--pictures N] [--threads 1,4] [--device cuda|cpu]

- `pillow`: The CPU engine's method, Pillow in one thread, and a copy of the tiles to the device.
- `hybrid`: lmdeploy's worker (`tile_cache.prepare`): Pillow decodes, the GPU resizes and normalizes, and the
  tiles are copied to main memory and, as TurboMind does, back to the GPU.
- `nvjpeg`: torchvision decodes on the GPU (nvJPEG), and the GPU resizes and normalizes.

The pictures are JPEGs of the sizes in photos.py, and those that peers/load.py sends. `taskset` limits the
CPU cores. The script prints a JSON object for each picture size and method:

- `ms`: The median time for a picture, one at a time, until its tiles are on the device.
- `threads`: For each number of threads, the pictures per second and the milliseconds of CPU time per picture.
- `batch`: The same for `nvjpeg` with all pictures decoded by one call.
- `decode_ms`, `tile_ms`: The time that Pillow takes to decode a picture, and that the device takes to resize and
  normalize it.
- `back_ms`: The time to copy the tiles to main memory, pageable and pinned.
- `tiles`: The largest difference from the tiles of `pillow` in grey levels (0 to 255), and the share of
  values that differ; for `nvjpeg`, also `decoded`, the same for the decoded pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.peers.load import picture
from benchmarks.photos import SIZES, photo
from inference.engines.lmdeploy.gpu_tiling import as_tensor, cut
from inference.engines.lmdeploy.tile_cache import prepare
from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD, pixel_values, tiles

Way = Callable[[bytes], torch.Tensor]
"""A function that returns the tiles of an encoded picture."""


def decode_on_card(encoded: list[bytes]) -> list[torch.Tensor]:
    """Decode JPEGs with nvJPEG, to [height, width, 3] in uint8.

    Raises:
        ImportError: torchvision is not installed.
        AttributeError, RuntimeError: torchvision lacks its image library or nvJPEG, or a picture cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped, unused-ignore]

    buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    return [each.permute(1, 2, 0) for each in decode_jpeg(buffers, mode=ImageReadMode.RGB, device="cuda")]


def grey_levels(tiles: torch.Tensor) -> torch.Tensor:
    """Return the grey levels, 0 to 255, of normalized float32 tiles [T, 3, S, S]."""
    mean, std = (torch.tensor(each, device=tiles.device).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (tiles * std + mean).mul(255).round()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Return the largest difference between two tensors of grey levels, and the share of values that differ."""
    gap = (found.float().cpu() - wanted.float().cpu()).abs()
    return {"largest": int(gap.max()), "share": round(float((gap > 0).float().mean()), 6)}


class Comparison:
    """The measurements of all methods, for pictures of one size.

    Args:
        name: The name of the pictures in the output.
        encoded: The pictures, as JPEGs.
        threads: The numbers of threads.
        device: The device on which the tiles are needed.
    """

    def __init__(self, name: str, encoded: list[bytes], threads: Sequence[int], device: torch.device) -> None:
        self._name, self._encoded, self._threads, self._device = name, encoded, threads, device
        self._tiling = Tiling()
        self._wanted = grey_levels(pixel_values(tiles(open_picture(encoded[0]), self._tiling)))

    def pillow(self) -> dict[str, Any]:
        """Measure Pillow in one thread for each picture."""

        def way(data: bytes) -> torch.Tensor:
            values = pixel_values(tiles(open_picture(data), self._tiling))
            return values.to(torch.bfloat16).to(self._device)

        return self._measure("pillow", way)

    def hybrid(self) -> dict[str, Any]:
        """Measure lmdeploy's worker."""

        def way(data: bytes) -> torch.Tensor:
            return prepare(data, b"", self._tiling, torch.bfloat16, self._device).pixels.to(self._device)

        found = self._measure("hybrid", way)
        decoded = as_tensor(open_picture(self._encoded[0])).to(self._device)
        values = cut(decoded, self._tiling).to(torch.bfloat16)
        found["decode_ms"] = self._median_ms(lambda: as_tensor(open_picture(self._encoded[0])))
        found["tile_ms"] = self._median_ms(lambda: cut(decoded, self._tiling))
        if self._device.type == "cuda":
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            found["back_ms"] = [self._median_ms(values.cpu), self._median_ms(lambda: pinned.copy_(values))]
        return found | {"tiles": difference(grey_levels(cut(decoded, self._tiling)), self._wanted)}

    def nvjpeg(self) -> dict[str, Any]:
        """Measure decoding and tiling on the GPU."""
        found = self._measure("nvjpeg", lambda data: self._cut(decode_on_card([data])[0]))
        found["batch"] = self._rate(lambda: [self._cut(each) for each in decode_on_card(self._encoded)])
        (decoded,) = decode_on_card(self._encoded[:1])
        return found | {
            "tiles": difference(grey_levels(cut(decoded, self._tiling)), self._wanted),
            "decoded": difference(decoded, as_tensor(open_picture(self._encoded[0]))),
        }

    def _cut(self, decoded: torch.Tensor) -> torch.Tensor:
        return cut(decoded, self._tiling).to(torch.bfloat16)

    def _measure(self, name: str, way: Way) -> dict[str, Any]:
        """Measure a method that prepares each picture in one thread."""

        def on_threads(threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(way, self._encoded))

        way(self._encoded[0])
        times = [self._seconds(partial(way, data)) for data in self._encoded]
        rates = {each: self._rate(partial(on_threads, each)) for each in self._threads}
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
    # One thread, as in the worker, where many threads decode pictures at once.
    torch.set_num_threads(1)
    ways = ["pillow", "hybrid"]
    if device.type == "cuda":
        try:
            decode_on_card([photo((64, 64), random.Random(0))])
            ways.append("nvjpeg")
        except (ImportError, AttributeError, RuntimeError) as error:
            print(f"nvjpeg is left out, because torchvision cannot decode on this GPU: {error}", file=sys.stderr)
    dice = random.Random(0)
    cases = {f"photos {size[0]}x{size[1]}": [photo(size, dice) for _ in range(options.pictures)] for size in SIZES}
    sent = (picture(seed).partition(",")[2] for seed in range(options.pictures))
    cases["peers 1280x960"] = [b64decode(each) for each in sent]
    for name, encoded in cases.items():
        comparison = Comparison(name, encoded, threads, device)
        for way in ways:
            print(json.dumps(getattr(comparison, way)()), flush=True)


if __name__ == "__main__":
    main()
