"""Worker: the processes that train together, as torchrun starts them, or one alone.

Knows torch's process groups. Each process has a GPU of its own, or all are on the CPU. The first one, of rank 0, is
who lays out files, reports and saves; the others follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

from training.worker import together

# One process checks the data while the others wait for it.
_PATIENCE: Final = timedelta(hours=2)


@contextmanager
def joined(*, gpu: bool) -> Iterator[None]:
    """Be one of them. XTuner's own model asks for its rank, so one alone needs a group as well."""
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if together() == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        # Before mmengine does it, which takes a GPU to be there.
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """The trained weights whole, also where DeepSpeed has spread them. All processes have to be here."""
    trained = [each for each in model.parameters() if each.requires_grad]
    if not any(hasattr(each, "ds_id") for each in trained):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(trained):
        yield


def wait() -> None:
    """Until all of them are here."""
    dist.barrier()
