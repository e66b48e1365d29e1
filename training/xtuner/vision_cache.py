"""The frozen vision tower's features of each picture, computed once for a run and kept in files.

The features of a picture are the same in every epoch up to the projector, which is trained. Each process computes its
share into `RANK.bin`, one array in the order of `RANK.json`, which names the pictures and their tiles. The arrays are
memory-mapped, so a training holds only a batch of them in memory.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import safe_open
from torch import Tensor

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_intern_vit import InternVisionModel
from inference.internvl2.modeling_internvl2 import unprojected
from inference.internvl2.tiling import Tiling
from training.bounded_map import bounded_map
from training.job import Job, Progress
from training.run_folder import BASE, FEATURES
from training.worker import Say, rank, world_size
from training.xtuner.encoding import load_tiles
from training.xtuner.gpu_yield import GpuYield

_PREFIX: Final = "vision_model."
_PICTURES: Final = "wanted"
"""The file with the names of the pictures to compute."""

_BATCH_TILES: Final = 26
"""Tiles in one pass of the tower: two large pictures fill a large GPU, and their activations fit a small one."""

_UNWRITTEN: Final = 2
"""The most pictures whose features wait on the GPU to be written."""


def frozen_dtype() -> torch.dtype:
    """Return the type of frozen weights and activations: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


class VisionTower:
    """The vision tower of a checkpoint, frozen, on the GPU if there is one."""

    def __init__(self, directory: Path, gpu_yield: GpuYield | None = None) -> None:
        self._config = InternVLChatConfig.from_pretrained(directory)
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        # On the meta device, the weights that the checkpoint replaces are not initialised.
        with torch.device("meta"):
            tower = InternVisionModel(self._config.vision_config)
        tower.load_state_dict(_weights(directory), assign=True)
        self._tower = tower.to(self._device, frozen_dtype()).eval().requires_grad_(False)
        if gpu_yield is not None:
            gpu_yield.attach(self._tower.encoder.layers, backward=False)

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """Tiles [T, 3, S, S] → features [T, tokens, width] on the tower's device."""
        parts = [part.to(self._device, frozen_dtype()) for part in tiles.split(_BATCH_TILES)]
        return torch.cat([unprojected(self._tower, self._config, part) for part in parts])


def _weights(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {
                name.removeprefix(_PREFIX): weights.get_tensor(name)
                for name in weights.keys()  # noqa: SIM118 - safe_open returns no mapping
                if name.startswith(_PREFIX)
            }
    return found


class VisionCache:
    """Read the features in a folder."""

    def __init__(self, folder: Path) -> None:
        self._features: dict[str, Tensor] = {}
        for index in sorted(folder.glob("*.json")):
            content = json.loads(index.read_text(encoding="utf-8"))
            dtype, size = getattr(torch, content["dtype"]), math.prod(content["shape"])
            if size:
                values = torch.from_file(str(index.with_suffix(".bin")), size=size, dtype=dtype).view(content["shape"])
                self._features |= {name: values[first : first + count] for name, first, count in content["pictures"]}

    def get(self, pictures: Sequence[str]) -> Tensor | None:
        """Return the features of some pictures in order, [T, tokens, width], or None unless all of them are cached."""
        if not all(name in self._features for name in pictures):
            return None
        # A copy, even of one picture: a loader's process passes a tensor on by the file descriptor of its storage,
        # which a mapped file lacks. torch 2.13 then loses the batch, and the training waits for it until it times out.
        return torch.cat([self._features[name] for name in pictures])


class _Writer:
    """Write features to a file. The index is written at the end; a file without one is not read."""

    def __init__(self, file: Path) -> None:
        self._index = file.with_suffix(".json")
        file.parent.mkdir(exist_ok=True)
        self._index.unlink(missing_ok=True)
        self._file = file.open("wb")
        self._pictures: list[tuple[str, int, int]] = []
        self._tiles, self._shape, self._dtype = 0, (0, 0), frozen_dtype()

    def add(self, name: str, features: Tensor) -> None:
        values = features.cpu().contiguous()
        values.view(torch.uint8).numpy().tofile(self._file)
        self._pictures.append((name, self._tiles, len(values)))
        self._tiles += len(values)
        self._shape = (values.shape[1], values.shape[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            content: dict[str, Any] = {
                "dtype": str(self._dtype).removeprefix("torch."),
                "shape": (self._tiles, *self._shape),
                "pictures": self._pictures,
            }
            self._index.write_text(json.dumps(content) + "\n", encoding="utf-8")


def request_features(job: Job, pictures: Sequence[str]) -> None:
    """Clear the run's cache and name the pictures that `compute_features` computes. Called by rank 0."""
    folder = Path(job.work) / FEATURES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / _PICTURES).write_text(json.dumps(pictures), encoding="utf-8")


def compute_features(job: Job, say: Say) -> None:
    """Compute this process's share of the requested features, as far as its share of the disk space allows.

    Raises:
        PictureError: A picture cannot be decoded.
        OSError: A file cannot be read or written.
    """
    folder = Path(job.work) / FEATURES
    pictures = json.loads((folder / _PICTURES).read_text(encoding="utf-8"))
    space = min(job.features_gigabytes * 1e9, 0.5 * shutil.disk_usage(folder).free)
    if share := pictures[rank() :: world_size()]:
        base, images = Path(job.work) / BASE, Path(job.images)
        tiling = Tiling.from_config(json.loads((base / "config.json").read_text(encoding="utf-8")), job.tiles)
        write_features(
            folder / f"{rank()}.bin",
            VisionTower(base, GpuYield.open(job.courtesy)),
            share,
            lambda name: load_tiles(images / name, tiling),
            max_bytes=space / world_size(),
            threads=job.threads or max(1, min(8, len(os.sched_getaffinity(0)) // world_size())),
            on_picture=lambda: say(Progress("looking")),
        )


def write_features(
    file: Path,
    tower: VisionTower,
    pictures: Iterable[str],
    load: Callable[[str], Tensor],
    *,
    max_bytes: float,
    threads: int,
    on_picture: Callable[[], None] = lambda: None,
) -> int:
    """Write the features of as many pictures as fit into `max_bytes`; return their number.

    `threads` threads `load` pictures, by name, as tiles [T, 3, S, S] while the tower computes those before.
    `on_picture` is called before each picture is computed.
    """
    written, used = 0, 0
    with (
        _Writer(file) as writer,
        ThreadPoolExecutor(threads) as loaders,
        # Copying features from the GPU and writing them takes as long as computing them.
        ThreadPoolExecutor(1) as writers,
    ):
        waiting: deque[Future[None]] = deque()
        for name, tiles in bounded_map(loaders, lambda name: (name, load(name)), pictures, 2 * threads):
            on_picture()
            features = tower(tiles)
            used += features.nbytes
            if used > max_bytes:
                loaders.shutdown(cancel_futures=True)
                break
            waiting.append(writers.submit(writer.add, name, features))
            written += 1
            if len(waiting) > _UNWRITTEN:
                waiting.popleft().result()
        for each in waiting:
            each.result()
    return written
