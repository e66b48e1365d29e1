"""Quantise a checkpoint's language model to 4 bits in AWQ's layout.

    python -m benchmarks.awq --model DIR --out DIR

The result is for measuring speed and memory, not quality. Each group of 128 weights is rounded to 16
levels between its minimum and maximum. Real AWQ (arXiv 2306.00978) first scales the channels by observed
activations. `lmdeploy lite auto_awq` does so, but needs a dataset from a hub. The scaling does not
affect shapes, kernels or memory use.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP: Final = 128
_LINEAR: Final = re.compile(r"language_model\.model\.layers\..*\.(wqkv|wo|w1|w2|w3)\.weight")
_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""The weight, of eight neighbours, that each four bits of a word hold, lowest bits first (AWQ's "gemm" layout)."""


def quantise(weight: Tensor) -> dict[str, Tensor]:
    """Quantise a weight of shape [out, in].

    Returns:
        `qweight`, int32 [in, out / 8]; `scales`, float16 [in / 128, out]; and `qzeros`, int32
        [in / 128, out / 8].
    """
    groups = weight.float().t().reshape(-1, GROUP, len(weight))  # [in / 128, 128, out]
    least, greatest = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((greatest - least) / 15).clamp(min=1e-6).half()
    zeros = (-least / scales.float()).round().clamp(0, 15)
    steps = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15).flatten(0, 1)
    return {"qweight": _packed(steps), "scales": scales, "qzeros": _packed(zeros)}


def _packed(steps: Tensor) -> Tensor:
    eight = steps.to(torch.int64).reshape(len(steps), -1, 8)
    words = sum(eight[..., neighbour] << (4 * position) for position, neighbour in enumerate(_ORDER))
    assert isinstance(words, Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def convert(model: Path, out: Path) -> None:
    """Write a complete, quantised copy of the checkpoint `model` to `out`."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    where: dict[str, str] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(file).items():
            if _LINEAR.fullmatch(name):
                tensors |= {name.removesuffix("weight") + part: each for part, each in quantise(tensor).items()}
            else:
                tensors[name] = tensor
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file.name)
    index = {"metadata": {}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "version": "gemm",
        "zero_point": True,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def main() -> None:
    """Run the command-line interface."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    convert(given.model, given.out)


if __name__ == "__main__":
    main()
