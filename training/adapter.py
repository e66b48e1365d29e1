"""Adapter directories: the weights that a run trained, and how to apply them to the base model.

An adapter directory contains an adapter for the language model in PEFT's format (adapter_config.json,
adapter_model.safetensors) and one for the vision tower in `vision/`. Weights that were trained in full,
either the projector's or all of the language model's, are in `whole.safetensors` under their names in
the base model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE: Final = "whole.safetensors"
VISION: Final = "vision"

_PREFIX: Final = "base_model.model."


class Adapter:
    """The trained weights in an adapter directory."""

    def __init__(self, directory: Path) -> None:
        """Open the adapter in `directory`.

        Raises:
            ValueError: The adapter is of an unsupported kind.
        """
        self._factors = _read_lora(directory, "language_model.") | _read_lora(directory / VISION, "vision_model.")
        whole = directory / WHOLE
        self._whole: Any = safe_open(whole, "pt") if whole.is_file() else None
        self._replaced = frozenset[str](self._whole.keys() if self._whole else ())  # type: ignore[no-untyped-call]

    def names(self) -> frozenset[str]:
        """Return the names of the weights that the adapter changes, as used in an InternVL2 checkpoint."""
        return self._replaced.union(self._factors)

    def applied(self, name: str, weight: Tensor) -> Tensor:
        """Merge the adapter into a weight in float32, and return the result in the weight's dtype on its device.

        A low-rank adapter adds alpha / rank · B A (LoRA, arXiv 2106.09685). A weight that the adapter does not
        change is returned unchanged.
        """
        if name in self._replaced:
            replacement: Tensor = self._whole.get_tensor(name)
            return replacement.to(weight)
        if name not in self._factors:
            return weight
        down, up, scale = self._factors[name]
        change = up.to(weight.device).float() @ down.to(weight.device).float()
        return change.mul_(scale).add_(weight).to(weight.dtype)

    def finite(self) -> bool:
        """Return whether all trained weights are finite; a run that diverges leaves NaN or infinity in them."""
        factors = (factor for down, up, _ in self._factors.values() for factor in (down, up))
        # One at a time: a language model's weights take gigabytes.
        whole = (self._whole.get_tensor(name) for name in sorted(self._replaced))
        # The sum is finite only if every term is, and computing it is much faster than testing each term.
        return all(math.isfinite(each.float().sum()) for each in chain(factors, whole))


def _read_lora(directory: Path, prefix: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return the LoRA matrices A and B and the scale of each adapted weight, by the weight's checkpoint name.

    The dict is empty if there is no adapter in `directory`.
    """
    file = directory / "adapter_config.json"
    if not file.is_file():
        return {}
    config = json.loads(file.read_text(encoding="utf-8"))
    known = config["peft_type"] == "LORA" and config["bias"] == "none" and not config.get("use_dora")
    if not known or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("fan_in_fan_out"):
        raise ValueError(f"{directory}: not a plain LoRA adapter")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    weights = load_file(directory / "adapter_model.safetensors")
    modules = [key.removesuffix("lora_A.weight") for key in weights if key.endswith(".lora_A.weight")]
    return {
        f"{prefix}{module.removeprefix(_PREFIX)}weight": (
            weights[f"{module}lora_A.weight"],
            weights[f"{module}lora_B.weight"],
            scale,
        )
        for module in modules
    }


def save_adapter(model: Any, trained: Mapping[str, Tensor], directory: Path) -> None:
    """Write the trained weights of an InternVL model, with or without PEFT wrappers, into `directory`.

    `trained` maps the weights' names in `model` to the weights.

    Raises:
        ValueError: The model has no trained weights.
    """
    for part, folder in (("language_model", directory), ("vision_model", directory / VISION)):
        module = getattr(model, part)
        if hasattr(module, "peft_config"):
            # PEFT would read all weights, and packing the 4-bit ones takes 20 s at full size (bitsandbytes 0.50.2).
            own = {name.removeprefix(f"{part}."): each for name, each in trained.items() if name.startswith(part)}
            lora = {name: each for name, each in own.items() if ".lora_" in name}
            module.save_pretrained(folder, state_dict=lora, save_embedding_layers=False)
    whole = {
        name.replace(_PREFIX, "").replace(".base_layer", ""): weight.contiguous()
        for name, weight in trained.items()
        if ".lora_" not in name
    }
    if whole:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(whole, directory / WHOLE)
    if not directory.is_dir():
        raise ValueError("nothing was trained")
