"""A cache of the frozen vision tower's features, computed once per run and kept in one file per picture.

A picture's features before the projector are the same in every epoch; the projector itself is trained.
Each process computes the features of a share of the pictures.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.model_sizes import read_sizes
from inference.internvl2.modeling_intern_vit import InternVisionModel
from inference.internvl2.modeling_internvl2 import unprojected
from inference.internvl2.tile_grid import Tiling
from training.bounded_map import bounded_map
from training.job import Job, Progress
from training.memory_estimate import tiles_per_pass
from training.run_folder import BASE, FEATURES
from training.worker import Say, rank, world_size
from training.xtuner.encoding import load_tiles
from training.xtuner.gpu_yield import GpuYield

_PREFIX: Final = "vision_model."
_PICTURES: Final = "wanted"
"""The file with the names of the pictures to compute."""

_FEATURES: Final = "features"
"""The name of the tensor in a picture's file."""

_UNWRITTEN: Final = 2
"""The maximum number of pictures whose features wait on the GPU to be written."""


def frozen_dtype() -> torch.dtype:
    """Return the data type of frozen weights and activations: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


class VisionTower:
    """The frozen vision tower of a checkpoint, on the GPU if there is one."""

    def __init__(self, directory: Path, gpu_yield: GpuYield | None = None) -> None:
        self._config = InternVLChatConfig.from_pretrained(directory)
        self._tiles = tiles_per_pass(read_sizes(directory))
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        # On the meta device, the weights that the checkpoint replaces are not initialized.
        with torch.device("meta"):
            tower = InternVisionModel(self._config.vision_config)
        tower.load_state_dict(_weights(directory), assign=True)
        self._tower = tower.to(self._device, frozen_dtype()).eval().requires_grad_(False)
        if gpu_yield is not None:
            gpu_yield.attach(self._tower.encoder.layers, backward=False)

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """Compute features [T, tokens, width], on the tower's device, from tiles [T, 3, S, S]."""
        parts = [part.to(self._device, frozen_dtype()) for part in tiles.split(self._tiles)]
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


def cached_features(folder: Path, pictures: Sequence[str]) -> Tensor | None:
    """Return the features of `pictures` in order, [T, tokens, width], or None if any of them is not cached."""
    files = [_file(folder, name) for name in pictures]
    if not all(file.exists() for file in files):
        return None
    # Even one picture's features are copied: a loader's process passes a tensor on by its storage's file descriptor,
    # which a mapped file lacks. torch 2.13 then loses the batch, and the training waits for it until it times out.
    return torch.cat([load_file(file)[_FEATURES] for file in files])


def _file(folder: Path, picture: str) -> Path:
    return folder / f"{sha256(picture.encode()).hexdigest()}.safetensors"


def request_features(job: Job, pictures: Sequence[str]) -> None:
    """Clear the run's cache and list the pictures that `compute_features` will process.

    Only rank 0 calls this function.
    """
    folder = Path(job.work) / FEATURES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / _PICTURES).write_text(json.dumps(pictures), encoding="utf-8")


def compute_features(job: Job, say: Say) -> None:
    """Compute this process's share of the requested features, as far as its share of the disk space allows.

    Raises:
        PictureError: A picture cannot be decoded.
        OSError: A file cannot be read.
        SafetensorError: A file cannot be written.
    """
    folder = Path(job.work) / FEATURES
    pictures = json.loads((folder / _PICTURES).read_text(encoding="utf-8"))
    space = min(job.features_gigabytes * 1e9, 0.5 * shutil.disk_usage(folder).free)
    if share := pictures[rank() :: world_size()]:
        base, images = Path(job.work) / BASE, Path(job.images)
        tiling = Tiling.from_config(json.loads((base / "config.json").read_text(encoding="utf-8")), job.tiles)
        write_features(
            folder,
            VisionTower(base, GpuYield.open(job.courtesy)),
            share,
            lambda name: load_tiles(images / name, tiling),
            max_bytes=space / world_size(),
            threads=job.threads or max(1, min(8, len(os.sched_getaffinity(0)) // world_size())),
            on_picture=lambda: say(Progress("looking")),
        )


def write_features(
    folder: Path,
    tower: VisionTower,
    pictures: Iterable[str],
    load: Callable[[str], Tensor],
    *,
    max_bytes: float,
    threads: int,
    on_picture: Callable[[], None] = lambda: None,
) -> None:
    """Write the features of as many pictures as fit into `max_bytes`.

    Args:
        folder: The folder of the vision cache.
        tower: The vision tower, which computes the features.
        pictures: The names of the pictures.
        load: A function that returns a picture's tiles, [T, 3, S, S].
        max_bytes: The maximum total size of the features, in bytes.
        threads: The number of threads that load pictures while the tower computes the features of earlier
            ones.
        on_picture: Called before the features of each picture are computed.
    """
    used = 0

    def write(name: str, features: Tensor) -> None:
        save_file({_FEATURES: features.cpu().contiguous()}, _file(folder, name))

    with (
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
            waiting.append(writers.submit(write, name, features))
            if len(waiting) > _UNWRITTEN:
                waiting.popleft().result()
        for each in waiting:
            each.result()
