"""A process that loads a checkpoint in partitions and prints what it holds, for tests of ZeRO 3.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.support.partitioned_shares CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from training.xtuner.distributed import process_group
from training.xtuner.partitioned_loading import load_partitioned


def main() -> None:
    """Print the numbers of elements in memory and in the shares, and whether the gathered weights are right."""
    checkpoint = Path(sys.argv[1])
    with process_group(gpu=False):
        import deepspeed

        model = load_partitioned(checkpoint)
        weights = dict(model.named_parameters())
        whole = sum(each.numel() for each in weights.values())
        shares = sum(each.ds_tensor.numel() for each in weights.values())
        stored = {name: each for file in checkpoint.glob("*.safetensors") for name, each in load_file(file).items()}
        right = weights.keys() == stored.keys()
        for name, weight in weights.items():
            with deepspeed.zero.GatheredParameters([weight]):
                right &= torch.equal(weight, stored[name].to(weight.dtype))
        # In a single write, because the processes share the pipe.
        sys.stdout.write(f"rank {dist.get_rank()} {whole} {shares} {right}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
