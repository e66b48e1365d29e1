"""Worker: let the engine on the same machine go first while a person waits for the first word of an answer.

Two processes on one card take turns of milliseconds, and a training step, a batch of pictures or an answer of the
evaluation is long: a question that comes in the middle of one would wait for half of it. So before each layer, forwards
and backwards, the worker reads the byte that `inference.serving.pressure` keeps, and pauses while it is set; never
longer than it has worked since the last pause, so that it goes on however many people chat. Never more than a few
layers are sent to the card ahead, or there would be nothing to hold back.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

_AHEAD: Final = 2
"""Layers sent to the card and not yet computed. Fewer would leave it idle between them."""

_LONGEST: Final = 1.0
"""Seconds of the longest pause: an engine that hangs does not stop the training."""

_LOOK_SECONDS: Final = 0.001


class Courtesy:
    """Pauses for the byte in a file; `step_aside` is called wherever the work can be held."""

    def __init__(self, file: Path, longest: float = _LONGEST) -> None:
        with file.open("rb") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1, access=mmap.ACCESS_READ)
        self._longest = longest
        self._sent: deque[torch.cuda.Event] = deque()
        self._resumed = time.monotonic()

    @classmethod
    def of(cls, file: str) -> Courtesy | None:
        """The one for the file that a job names; None where it names none, or no engine has made it."""
        return cls(Path(file)) if file and Path(file).is_file() else None

    def attach(self, layers: Iterable[nn.Module], *, backward: bool = True) -> None:
        """Step aside before each of the layers, and with `backward` before each in the other direction."""
        for layer in layers:
            layer.register_forward_pre_hook(self._before)
            if backward:
                layer.register_full_backward_pre_hook(self._before)

    def step_aside(self) -> None:
        """Return when nobody waits, or after as long as was worked since the last pause."""
        if torch.cuda.is_available():
            self._keep_close()
        if not self._byte[0]:
            return
        began = time.monotonic()
        until = began + min(self._longest, began - self._resumed)
        while self._byte[0] and (left := until - time.monotonic()) > 0:
            # A small model's layer takes less than a look does.
            time.sleep(min(_LOOK_SECONDS, left))
        self._resumed = time.monotonic()

    def _keep_close(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._sent.append(event)
        if len(self._sent) > _AHEAD:
            self._sent.popleft().synchronize()

    def _before(self, *_unused: Any) -> None:
        self.step_aside()
