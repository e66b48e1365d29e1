"""An mmengine hook for tests that simulates running out of GPU memory above a given batch size."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook


class Cramped(Hook):  # type: ignore[misc]
    """A hook that raises torch's out-of-memory error if a batch has more than `most` pairs."""

    def __init__(self, most: int) -> None:
        self._most = most

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if len(data_batch["data"]["input_ids"]) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
