"""An adapter directory: what a training leaves behind, and what it adds to the base's weights.

PEFT's format (adapter_config.json, adapter_model.safetensors) for the language model, in `vision/` the same for the
vision tower, and beside them the weights that were trained whole, the projector's or all of the language model's, under
the base's own names. Knows nothing of training or of checkpoint directories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE: Final = "whole.safetensors"
VISION: Final = "vision"

_PREFIX: Final = "base_model.model."


class Adapter:
    """The trained weights of one adapter directory. Raises ValueError if the directory holds anything else."""

    def __init__(self, directory: Path) -> None:
        places = {"language_model.": directory, "vision_model.": directory / VISION}
        self._products = [_Product(place, prefix) for prefix, place in places.items() if _holds_lora(place)]
        self._replaced = _Replaced(directory / WHOLE)

    def names(self) -> set[str]:
        """The base's weights that this adapter changes, by their names in an InternVL2 checkpoint."""
        return self._replaced.names().union(*(each.names() for each in self._products))

    def applied(self, name: str, weight: Tensor) -> Tensor:
        """The weight with the adapter merged in, computed in float32, in the weight's own type.

        A weight the adapter does not change comes back as it is.
        """
        if name in self._replaced.names():
            return self._replaced.read(name).to(weight.dtype)
        for each in self._products:
            if name in each.names():
                return each.added(name, weight)
        return weight

    def finite(self) -> bool:
        """Whether every trained number is one; a diverged training leaves NaN or infinity."""
        products = (factor for each in self._products for factor in each.factors.values())
        return all(bool(torch.isfinite(each).all()) for values in (products, self._replaced) for each in values)


class _Product:
    """The low-rank factors of one part of the model, whose weights begin with `prefix` in a checkpoint."""

    def __init__(self, directory: Path, prefix: str) -> None:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        known = config["peft_type"] == "LORA" and config["bias"] == "none" and not config.get("use_dora")
        if not known or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("fan_in_fan_out"):
            raise ValueError(f"{directory}: not a plain LoRA adapter")
        rank = config["r"]
        self._scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self.factors = load_file(directory / "adapter_model.safetensors")
        self._modules = {
            prefix + key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight": key.removesuffix("A.weight")
            for key in self.factors
            if key.endswith(".lora_A.weight")
        }

    def names(self) -> set[str]:
        """The weights that get something added."""
        return set(self._modules)

    def added(self, name: str, weight: Tensor) -> Tensor:
        """W + alpha / rank · B A (LoRA, arXiv 2106.09685)."""
        down, up = (self.factors[f"{self._modules[name]}{side}.weight"] for side in "AB")
        merged: Tensor = weight.float() + self._scale * (up.float() @ down.float())
        return merged.to(weight.dtype)


class _Replaced:
    """Whole weights in a file, which need not exist; read one at a time: those of a language model are gigabytes."""

    def __init__(self, file: Path) -> None:
        self._opened: Any = safe_open(file, "pt") if file.is_file() else None
        self._names: set[str] = set(self._opened.keys()) if self._opened else set()  # type: ignore[no-untyped-call]

    def names(self) -> set[str]:
        """The weights that get others in their place."""
        return self._names

    def read(self, name: str) -> Tensor:
        """The new weight of that name."""
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, sorted(self._names))


def save_adapter(model: Any, directory: Path) -> None:
    """Write what was trained of an InternVL model, whose towers PEFT may have wrapped. Raises ValueError for none."""
    for part, place in ((model.language_model, directory), (model.vision_model, directory / VISION)):
        if hasattr(part, "peft_config"):
            part.save_pretrained(place, save_embedding_layers=False)
    whole = {
        name.replace(_PREFIX, "").replace(".base_layer", ""): weight.detach().contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad and ".lora_" not in name
    }
    if whole:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(whole, directory / WHOLE)
    if not directory.is_dir():
        raise ValueError("nothing was trained")


def _holds_lora(directory: Path) -> bool:
    return (directory / "adapter_config.json").is_file()
