"""Worker: what the frozen vision tower makes of each picture, computed once for a run and kept in files.

The tower's output for a picture is the same in every epoch, and before the projector, which is trained. A file `N.bin`
holds it as one array in the order of `N.json`, which says whose tiles lie where; it is memory-mapped, so a run needs
memory for a batch of it only. Each of several processes writes a file. Knows tiles and the tower; which pictures, and
when, is `finetune`'s.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import safe_open
from torch import Tensor

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_intern_vit import InternVisionModel
from inference.internvl2.modeling_internvl2 import unprojected
from training.xtuner.encoding import Sight
from training.xtuner.gpu_yield import Courtesy

_PREFIX: Final = "vision_model."
_TILES: Final = 26
"""Tiles in one pass of the tower: two large pictures fill a big card, and their activations fit a small one."""

_UNWRITTEN: Final = 2
"""Pictures whose features wait on the card to be written."""


def precision() -> torch.dtype:
    """What frozen weights and activations are kept in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


class Tower:
    """The vision tower of a checkpoint alone, frozen, on the GPU if there is one."""

    def __init__(self, directory: Path, courtesy: Courtesy | None = None) -> None:
        """Load the checkpoint's tower; `courtesy` is where it steps aside."""
        self._config = InternVLChatConfig.from_pretrained(directory)
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        # No weights are drawn that the next lines replace.
        with torch.device("meta"):
            tower = InternVisionModel(self._config.vision_config)
        tower.load_state_dict(_weights(directory), assign=True)
        self._tower = tower.to(self._device, precision()).eval().requires_grad_(False)
        if courtesy is not None:
            courtesy.attach(self._tower.encoder.layers, backward=False)

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """Tiles [T, 3, S, S] → features [T, tokens, folded width] on the tower's device."""
        parts = [part.to(self._device, precision()) for part in tiles.split(_TILES)]
        return torch.cat([unprojected(self._tower, self._config, part) for part in parts])


def _weights(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {
                name.removeprefix(_PREFIX): weights.get_tensor(name)
                for name in weights.keys()  # noqa: SIM118 it is no dictionary
                if name.startswith(_PREFIX)
            }
    return found


class Features:
    """The features in a folder of files that `write` wrote."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, Tensor] = {}
        for index in sorted(folder.glob("*.json")):
            content = json.loads(index.read_text(encoding="utf-8"))
            kind, size = getattr(torch, content["dtype"]), math.prod(content["shape"])
            if size:
                values = torch.from_file(str(index.with_suffix(".bin")), size=size, dtype=kind).view(content["shape"])
                self._found |= {name: values[first : first + count] for name, first, count in content["pictures"]}

    def of(self, pictures: Sequence[str]) -> Tensor | None:
        """A copy of those of some pictures, in order, [T, tokens, width]; None if not all of them are kept."""
        if not all(name in self._found for name in pictures):
            return None
        # No view of the file, of one picture alone neither: a loader's process hands a tensor on by its storage's file
        # descriptor, a mapped file has none, and torch then loses the batch, for which the training waits for ever.
        return torch.cat([self._found[name] for name in pictures])


class _File:
    """The file as it grows. The index is written last: without it there is no file to read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(exist_ok=True)
        _index(file).unlink(missing_ok=True)
        self._writer = file.open("wb")
        self._pictures: list[tuple[str, int, int]] = []
        self._tiles, self._rest, self._dtype = 0, (0, 0), precision()

    def add(self, name: str, features: Tensor) -> None:
        values = features.cpu().contiguous()
        values.view(torch.uint8).numpy().tofile(self._writer)
        self._pictures.append((name, self._tiles, len(values)))
        self._tiles += len(values)
        self._rest = (values.shape[1], values.shape[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self._writer.close()
        if kind is None:
            content: dict[str, Any] = {
                "dtype": str(self._dtype).removeprefix("torch."),
                "shape": (self._tiles, *self._rest),
                "pictures": self._pictures,
            }
            _index(self._file).write_text(json.dumps(content) + "\n", encoding="utf-8")


def write(
    file: Path,
    *,
    base: Path,
    images: Path,
    pictures: Iterable[str],
    sight: Sight,
    room: float,
    threads: int,
    courtesy: str = "",
    on_picture: Callable[[], None] = lambda: None,
) -> int:
    """Write the features of as many of the pictures as fit into `room` bytes; how many did. `on_picture` is called
    before each.

    Pictures are read and cut by `threads` threads while the tower looks at those before. The tower steps aside for the
    engine of the file `courtesy`. Raises `PictureError` and
    OSError.
    """
    tower = Tower(base, Courtesy.of(courtesy))
    written, used = 0, 0
    with (
        _File(file) as growing,
        ThreadPoolExecutor(threads) as cutting,
        # Bringing features from the card and writing them takes as long as looking does.
        ThreadPoolExecutor(1) as writing,
    ):
        waiting: deque[Future[None]] = deque()
        for name, tiles in _ahead(cutting, 2 * threads, lambda name: sight.look(images / name), pictures):
            on_picture()
            seen = tower(tiles)
            used += seen.nbytes
            if used > room:
                cutting.shutdown(cancel_futures=True)
                break
            waiting.append(writing.submit(growing.add, name, seen))
            written += 1
            if len(waiting) > _UNWRITTEN:
                waiting.popleft().result()
        for each in waiting:
            each.result()
    return written


def _ahead(
    pool: ThreadPoolExecutor, many: int, work: Callable[[str], Tensor], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Each name with the result of the work on it, in order, so `many` begun at a time."""
    waiting: deque[tuple[str, Future[Tensor]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(work, name)))
        if len(waiting) > many:
            first, result = waiting.popleft()
            yield first, result.result()
    for first, result in waiting:
        yield first, result.result()


def _index(file: Path) -> Path:
    return file.with_suffix(".json")
