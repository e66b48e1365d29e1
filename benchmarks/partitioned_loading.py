r"""Measure the main memory that each process uses while it loads a model for ZeRO 3, without a GPU.

    MALLOC_MMAP_THRESHOLD_=65536 python -m torch.distributed.run --standalone --nproc-per-node=2 \
        -m benchmarks.partitioned_loading --work DIR [--size qwen2-1b] [--whole]

With `--whole`, each process loads the whole model, as in the other stages. The weights are zeros in float32, and
all of the language model is trained. Pages of mapped files do not count. The environment variable makes the
allocator return freed memory at once. DeepSpeed must be installed.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import torch.distributed as dist

from benchmarks.memory_table import write_sparse
from benchmarks.random_checkpoint import SIZES
from training.worker import rank
from training.xtuner.distributed import process_group
from training.xtuner.internvl_model import InternVL2


def anonymous() -> int:
    """Return the anonymous memory of this process (not backed by files), in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024


class Peak:
    """The peak of the anonymous memory, sampled every few milliseconds."""

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.002)


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="qwen2-1b")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    with process_group(gpu=False):
        import deepspeed  # noqa: F401 - its own memory does not count

        if rank() == 0:
            write_sparse(SIZES[options.size], options.work)
        dist.barrier()
        before, peak = anonymous(), Peak()
        model = InternVL2(model_path=str(options.work), freeze_visual_encoder=True, partitioned=not options.whole)
        after = anonymous() - before
        said = f"rank {rank()}: peak {(peak.bytes - before) / 1e9:.2f} GB, {after / 1e9:.2f} GB after loading"
        print(said)
        del model


if __name__ == "__main__":
    main()
