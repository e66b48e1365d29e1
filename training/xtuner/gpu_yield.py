"""Give the engine on the same GPU priority while a user waits for the first token of an answer.

Two processes on one GPU take turns lasting milliseconds, but a training step, a batch of pictures or an
answer in the evaluation takes much longer: a question that arrives in the middle of one would have to
wait for the rest of it. Before each layer, in the forward and the backward pass, the worker therefore
reads the byte that `inference.serving.first_token_signal` sets, and pauses while the byte is set. A pause is never
longer than a quarter of the work since the last pause, so that training advances no matter how many users chat. The
worker queues only a few layers at a time, because work that is already queued on the GPU cannot be held
back.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from torch import nn

_QUEUED: Final = 2
"""The number of layers queued on the GPU. With fewer, the GPU would idle between layers."""

_PAUSE_SHARE: Final = 0.25
"""The longest pause, as a share of the time since the last one."""

_MAX_PAUSE: Final = 1.0
"""The longest pause in seconds, so that an engine that hangs does not stop the training."""

_POLL_SECONDS: Final = 0.001


class GpuYield:
    """A hook that pauses a model before each of its layers while a byte in a file is set."""

    def __init__(self, file: Path, max_pause: float = _MAX_PAUSE) -> None:
        with file.open("rb") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1, access=mmap.ACCESS_READ)
        self._max_pause = max_pause
        self._queued: deque[torch.cuda.Event] = deque()
        self._resumed = time.monotonic()

    @classmethod
    def open(cls, file: str) -> GpuYield | None:
        """Open the file named by a job, or return None if `file` is empty or no engine has created the file."""
        return cls(Path(file)) if file and Path(file).is_file() else None

    def attach(self, layers: Iterable[nn.Module], *, backward: bool = True) -> None:
        """Call `pause` before each layer and, if `backward` is true, before each layer's backward pass too."""
        for layer in layers:
            layer.register_forward_pre_hook(lambda *_: self.pause())
            if backward:
                layer.register_full_backward_pre_hook(lambda *_: self.pause())

    def pause(self) -> None:
        """Block while a user is waiting, for at most a quarter of the time since the last pause."""
        if torch.cuda.is_available():
            self._limit_queue()
        if not self._byte[0]:
            return
        began = time.monotonic()
        until = began + min(self._max_pause, _PAUSE_SHARE * (began - self._resumed))
        while self._byte[0] and (left := until - time.monotonic()) > 0:
            # A layer of a small model takes less time than one poll.
            time.sleep(min(_POLL_SECONDS, left))
        self._resumed = time.monotonic()

    def _limit_queue(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > _QUEUED:
            self._queued.popleft().synchronize()
