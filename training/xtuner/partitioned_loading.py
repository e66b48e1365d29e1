"""Load a model whose weights are partitioned over the training processes (ZeRO 3).

Rank 0 reads the weights one at a time and sends each to the others, which keep only their shares. No
process ever holds the whole model, in main memory or on its GPU. transformers 4.57.6 can load in
partitions too, but leaves weights of InternVL2 uninitialized.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xtuner.model.internvl
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from training.worker import rank
from training.xtuner.vision_cache import frozen_dtype

_VISION = "vision_model."


@contextmanager
def partitioned_loading(*, vision: bool) -> Iterator[None]:
    """Make XTuner's constructors load InternVL2 in partitions for the duration of the context.

    Without `vision`, the vision tower is left out: its weights stay on the meta device.
    """

    class Loader:
        @staticmethod
        def from_pretrained(model_path: str, **_: Any) -> InternVLChatModel:
            return load_partitioned(Path(model_path), vision=vision)

    # XTuner 0.2.0 calls transformers' AutoModel by this name.
    stock = xtuner.model.internvl.AutoModel
    xtuner.model.internvl.AutoModel = Loader
    try:
        yield
    finally:
        xtuner.model.internvl.AutoModel = stock


def load_partitioned(directory: Path, *, vision: bool = True) -> InternVLChatModel:
    """Load a checkpoint so that each process has its share of every weight.

    All processes must call this function. Without `vision`, the weights of the vision tower stay on the meta
    device.

    Raises:
        ValueError: A weight is missing or has the wrong shape.
    """
    with init_empty_weights(include_buffers=False):
        model = InternVLChatModel(InternVLChatConfig.from_pretrained(directory))
    model.tie_weights()  # a shared weight is loaded once
    partition = _Partitioner()
    reader = _Reader(directory) if rank() == 0 else None
    for name, empty in list(model.named_parameters()):
        if name.startswith(_VISION) and not vision:
            continue
        if reader is None:
            weight = torch.empty(empty.shape, dtype=frozen_dtype())
        else:
            weight = reader.read(name, empty.shape).to(frozen_dtype())
        path, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(weight)
        partition(parameter)
        setattr(model.get_submodule(path), leaf, parameter)
    model.tie_weights()
    return model


class _Reader:
    """A reader of the weights of a checkpoint, by name."""

    def __init__(self, directory: Path) -> None:
        files: list[Any] = [safe_open(file, "pt") for file in sorted(directory.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """Return the weight `name`, whose shape must be `shape`."""
        if name not in self._files:
            raise ValueError(f"the checkpoint has no {name}")
        weight: Tensor = self._files[name].get_tensor(name)
        if weight.shape != shape:
            raise ValueError(f"{name} has the shape {list(weight.shape)} instead of {list(shape)}")
        return weight


class _Partitioner:
    """A callable that broadcasts parameters from rank 0 one at a time, and keeps this process's share of each."""

    def __init__(self) -> None:
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        import deepspeed

        if self._first is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]))
            self._first = parameter
        else:
            # A partitioned parameter has the method with which DeepSpeed itself partitions a model's remaining
            # parameters (DeepSpeed 0.18.9, runtime/zero/parameter_offload.py).
            self._first.convert_to_zero_parameters(param_list=[parameter])
