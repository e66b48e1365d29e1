"""An adapter directory: what a training leaves behind, and what it adds to the base's weights.

PEFT's format (adapter_config.json, adapter_model.safetensors) for the language model, and beside it the projector's
new weights, if it was trained, under the base's own names. Knows nothing of training or of checkpoint directories.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

PROJECTOR: Final = "projector.safetensors"

_PREFIX: Final = "base_model.model."


class Adapter:
    """The trained weights of one adapter directory. Raises ValueError if the directory holds anything else."""

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        known = config["peft_type"] == "LORA" and config["bias"] == "none" and not config.get("use_dora")
        if not known or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("fan_in_fan_out"):
            raise ValueError(f"{directory}: not a plain LoRA adapter")
        rank = config["r"]
        self.scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._factors = load_file(directory / "adapter_model.safetensors")
        projector = directory / PROJECTOR
        self._replaced = load_file(projector) if projector.is_file() else {}

    def names(self) -> set[str]:
        """The base's weights that this adapter changes, by their names in an InternVL2 checkpoint."""
        changed = {
            "language_model." + key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight"
            for key in self._factors
            if key.endswith(".lora_A.weight")
        }
        return changed | set(self._replaced)

    def applied(self, name: str, weight: Tensor) -> Tensor:
        """The weight with the adapter merged in, computed in float32, in the weight's own type.

        W + alpha / rank · B A (LoRA, arXiv 2106.09685). A weight the adapter does not change comes back as it is.
        """
        if name in self._replaced:
            return self._replaced[name].to(weight.dtype)
        module = _PREFIX + name.removeprefix("language_model.").removesuffix(".weight")
        down = self._factors.get(f"{module}.lora_A.weight")
        if down is None or not name.startswith("language_model."):
            return weight
        up = self._factors[f"{module}.lora_B.weight"]
        merged: Tensor = weight.float() + self.scale * (up.float() @ down.float())
        return merged.to(weight.dtype)

    def finite(self) -> bool:
        """Whether every trained number is one; a diverged training leaves NaN or infinity."""
        return all(bool(torch.isfinite(each).all()) for each in (*self._factors.values(), *self._replaced.values()))
