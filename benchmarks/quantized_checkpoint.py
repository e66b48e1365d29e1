"""Quantize a checkpoint's language model to 4 bits in AWQ's layout, or to 8-bit floating point.

    python -m benchmarks.quantized_checkpoint --model DIR --out DIR --format awq|fp8

The result is for measuring speed and memory, not quality. For `awq`, each group of 128 weights is rounded to 16
levels between its minimum and maximum. Real AWQ (arXiv 2306.00978) first scales the channels by observed
activations. `lmdeploy lite auto_awq` does so, but needs a dataset from a hub. The scaling does not
affect shapes, kernels or memory use. For `fp8`, each block of 128 × 128 weights has a scale, and its weights are
rounded to float8_e4m3, as in the checkpoints of DeepSeek-V3 (arXiv 2412.19437, section 3.3); TurboMind then also
rounds the activations to 8 bits.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SIDE: Final = 128
"""The number of weights in a group, and the side of a block."""

_LINEAR: Final = re.compile(r"language_model\.model\.layers\..*\.(wqkv|wo|w1|w2|w3)\.weight")
_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""The weight, of eight neighbours, that each four bits of a word hold, lowest bits first (AWQ's "gemm" layout)."""


def awq(weight: Tensor) -> dict[str, Tensor]:
    """Quantize a weight of shape [out, in] to 4 bits.

    Returns:
        `qweight`, int32 [in, out / 8]; `scales`, float16 [in / 128, out]; and `qzeros`, int32
        [in / 128, out / 8].
    """
    groups = weight.float().t().reshape(-1, SIDE, len(weight))  # [in / 128, 128, out]
    least, greatest = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((greatest - least) / 15).clamp(min=1e-6).half()
    zeros = (-least / scales.float()).round().clamp(0, 15)
    steps = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15).flatten(0, 1)
    return {"qweight": _packed(steps), "scales": scales, "qzeros": _packed(zeros)}


def fp8(weight: Tensor) -> dict[str, Tensor]:
    """Quantize a weight of shape [out, in] to float8_e4m3.

    Returns:
        `weight`, float8_e4m3 [out, in], and `weight_scale_inv`, float32 [out / 128, in / 128], by which its blocks
        are multiplied.
    """
    rows, columns = weight.shape
    blocks = weight.float().view(rows // SIDE, SIDE, columns // SIDE, SIDE)
    scales = (blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-12)
    rounded = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    return {"weight": rounded.view(weight.shape), "weight_scale_inv": scales}


FORMATS: Final[dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": SIDE, "version": "gemm", "zero_point": True}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [SIDE, SIDE], "activation_scheme": "dynamic"}),
}
"""For each format, the function that quantizes a weight, and the `quantization_config` in config.json."""


def _packed(steps: Tensor) -> Tensor:
    eight = steps.to(torch.int64).reshape(len(steps), -1, 8)
    words = sum(eight[..., neighbour] << (4 * position) for position, neighbour in enumerate(_ORDER))
    assert isinstance(words, Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def convert(model: Path, out: Path, form: str) -> None:
    """Write a complete copy of the checkpoint `model`, quantized to the format `form`, to `out`."""
    quantize, description = FORMATS[form]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    where: dict[str, str] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(file).items():
            if _LINEAR.fullmatch(name):
                tensors |= {name.removesuffix("weight") + part: each for part, each in quantize(tensor).items()}
            else:
                tensors[name] = tensor
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file.name)
    index = {"metadata": {}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = description
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def main() -> None:
    """Run the command-line interface."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--format", choices=FORMATS, required=True)
    given = options.parse_args()
    convert(given.model, given.out, given.format)


if __name__ == "__main__":
    main()
