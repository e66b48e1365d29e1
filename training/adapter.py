"""An adapter directory: the trained weights of a run, and how they change the base's.

It has PEFT's format (adapter_config.json, adapter_model.safetensors) for the language model, the same in `vision/` for
the vision tower, and in `whole.safetensors`, under the base's names, weights that were trained whole: the projector's,
or all of the language model's.
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
    """The trained weights of an adapter directory."""

    def __init__(self, directory: Path) -> None:
        """Open the directory. Raises ValueError for an unsupported kind of adapter."""
        parts = {"language_model.": directory, "vision_model.": directory / VISION}
        self._products = [
            _Product(part, prefix) for prefix, part in parts.items() if (part / "adapter_config.json").is_file()
        ]
        self._replaced = _Replaced(directory / WHOLE)

    def names(self) -> set[str]:
        """Return the names, in an InternVL2 checkpoint, of the weights that the adapter changes."""
        return self._replaced.names().union(*(each.names() for each in self._products))

    def applied(self, name: str, weight: Tensor) -> Tensor:
        """Merge the adapter into a weight, in float32; return it in its own type.

        A weight that the adapter does not change is returned as it is.
        """
        if name in self._replaced.names():
            return self._replaced.read(name).to(weight.dtype)
        for each in self._products:
            if name in each.names():
                return each.added(name, weight)
        return weight

    def finite(self) -> bool:
        """Return whether all trained weights are finite; a diverged training leaves NaN or infinity."""
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
        """Return the weights that get a product added."""
        return set(self._modules)

    def added(self, name: str, weight: Tensor) -> Tensor:
        """Return W + alpha / rank · B A (LoRA, arXiv 2106.09685)."""
        down, up = (self.factors[f"{self._modules[name]}{side}.weight"] for side in "AB")
        merged: Tensor = weight.float() + self._scale * (up.float() @ down.float())
        return merged.to(weight.dtype)


class _Replaced:
    """Whole weights in a file, which may be missing; read one at a time, since a language model's are gigabytes."""

    def __init__(self, file: Path) -> None:
        self._opened: Any = safe_open(file, "pt") if file.is_file() else None
        self._names: set[str] = set(self._opened.keys()) if self._opened else set()  # type: ignore[no-untyped-call]

    def names(self) -> set[str]:
        """Return the names of the weights that are replaced."""
        return self._names

    def read(self, name: str) -> Tensor:
        """Return the new weight of a name."""
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, sorted(self._names))


def save_adapter(model: Any, directory: Path) -> None:
    """Write the trained weights of an InternVL model, whose towers PEFT may wrap. Raises ValueError without any."""
    for part, folder in ((model.language_model, directory), (model.vision_model, directory / VISION)):
        if hasattr(part, "peft_config"):
            part.save_pretrained(folder, save_embedding_layers=False)
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
