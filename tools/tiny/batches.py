"""Batches of random conversations; several processes draw and tile the pictures and tokenize the text.

The model learns only the answers and their end tokens. A pool of batches is kept, because drawing
pictures is slower than training on them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inference.chat_format.template import IM_END, IM_START, render, render_answer
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import tiles
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.shapes import Scene
from tools.tiny.conversations import Length, TrainingConversation, converse
from tools.tiny.training_drawing import draw

_TILING: Final = Tiling.from_config(json.loads((CHECKPOINT / "config.json").read_bytes()))

IGNORED: Final = -100

_ROWS: Final[dict[Length, int]] = {"short": 64, "medium": 24, "long": 8}
_LONGEST: Final[dict[Length, int]] = {"short": 640, "medium": 1000, "long": 2000}  # tokens; longer rows are left out
_SHARE: Final[dict[Length, float]] = {"short": 0.5, "medium": 0.3, "long": 0.2}
_KEPT_PER_SCENE: Final = 8  # drawings of one scene that a process keeps
_REUSED: Final = 0.6  # share of pictures that are reused
_USES: Final = 2.0  # times that a batch is sampled before a new one is drawn


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations of similar length, one in each row.

    `tiles`, uint8 [T, S, S, 3], holds the tiles in the order in which the rows of `ids` refer to them.
    `labels` holds the token IDs to be learned, and `IGNORED` in all other positions.
    """

    length: Length
    tiles: Tensor
    ids: list[list[int]]
    labels: list[list[int]]

    @classmethod
    def join(cls, parts: list[Batch]) -> Self:
        """Join batches of the same length class into one."""
        return cls(
            parts[0].length,
            torch.cat([part.tiles for part in parts]),
            [row for part in parts for row in part.ids],
            [row for part in parts for row in part.labels],
        )


class ConversationEncoder:
    """An encoder that turns conversations into token IDs and labels."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.convert_tokens_to_ids(IM_END)
        self._opening: list[int] = tokenizer.encode(f"{IM_START}assistant\n", add_special_tokens=False)

    def encode(self, conversation: TrainingConversation, picture_tiles: list[int]) -> tuple[list[int], list[int]]:
        """Return the token IDs and labels of a conversation.

        The labels are the token IDs of every answer and its end token, and `IGNORED` in all other positions.
        `picture_tiles` holds the number of tiles of each picture.
        """
        text = render(conversation.prompt, [_TILING.tokens * count for count in picture_tiles], INTERNVL2)
        ids: list[int] = self._tokenizer.encode(text + render_answer(conversation.answer, INTERNVL2))
        labels = [IGNORED] * len(ids)
        answering = False
        for position, token in enumerate(ids):
            if answering:
                labels[position] = token
                answering = token != self._end
            else:
                answering = ids[max(position + 1 - len(self._opening), 0) : position + 1] == self._opening
        return ids, labels


class Batches(IterableDataset[Batch]):
    """An endless stream of random batches, different in each worker process."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._encoder = ConversationEncoder(tokenizer)
        self._seed = seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = Random(f"{self._seed}/{worker.id if worker else 0}")
        cache = _PictureCache(rng)
        while True:
            length: Length = rng.choices(list(_SHARE), list(_SHARE.values()))[0]
            yield self._batch(length, rng, cache)

    def _batch(self, length: Length, rng: Random, cache: _PictureCache) -> Batch:
        pictures: list[Tensor] = []
        batch_ids: list[list[int]] = []
        batch_labels: list[list[int]] = []
        while len(batch_ids) < _ROWS[length]:
            conversation = converse(length, rng)
            shown = [cache.picture(scene) for scene in conversation.scenes]
            ids, labels = self._encoder.encode(conversation, [len(each) for each in shown])
            if len(ids) <= _LONGEST[length]:
                batch_ids.append(ids)
                batch_labels.append(labels)
                pictures += shown
        return Batch(length, torch.cat(pictures), batch_ids, batch_labels)


class _PictureCache:
    """A cache of tiled pictures, keyed by scene, which reuses some pictures to save drawing time."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._drawn: dict[Scene, deque[Tensor]] = {}

    def picture(self, scene: Scene) -> Tensor:
        """Return a drawing of the scene split into tiles, uint8 [T, S, S, 3]; some drawings are reused."""
        kept = self._drawn.setdefault(scene, deque(maxlen=_KEPT_PER_SCENE))
        if len(kept) == _KEPT_PER_SCENE and self._rng.random() < _REUSED:
            return self._rng.choice(kept)
        cut = tiles(draw(scene, self._rng), _TILING)
        kept.append(torch.from_numpy(np.stack([np.asarray(tile) for tile in cut])))
        return kept[-1]


class Pool:
    """The newest batches of each length class, refilled by a thread while the training loop samples from them.

    After the initial fill, the pool takes one new batch for every `_USES` batches sampled, so that drawing
    pictures leaves CPU time for training.
    """

    def __init__(self, source: Batches, *, workers: int, size: int) -> None:
        self._kept: dict[Length, deque[Batch]] = {length: deque(maxlen=size) for length in _SHARE}
        self.received = 0
        self.sampled = 0
        self._stopped = threading.Event()
        self._loader = iter(
            DataLoader(source, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)
        )
        self._thread = threading.Thread(target=self._refill, daemon=True)

    def __enter__(self) -> Self:
        while not all(self._kept.values()):
            self._receive()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def sample(self, rng: Random, parts: int) -> Batch:
        """Return a batch joined from `parts` random batches of the same length class."""
        length: Length = rng.choices(list(_SHARE), list(_SHARE.values()))[0]
        kept = self._kept[length]
        self.sampled += parts
        return Batch.join([kept[rng.randrange(len(kept))] for _ in range(parts)])

    def _refill(self) -> None:
        first = sum(kept.maxlen or 0 for kept in self._kept.values()) // 2
        while not self._stopped.is_set():
            if self.received > first + self.sampled / _USES:
                time.sleep(0.005)
            else:
                self._receive()

    def _receive(self) -> None:
        batch: Batch = next(self._loader)
        self._kept[batch.length].append(batch)
        self.received += 1
