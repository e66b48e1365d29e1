"""Small InternVL checkpoints in the official layout, with random weights and Qwen2, Qwen3 or Phi-3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_checkpoint import SIZES, write_random
from benchmarks.random_tokenizers import make_phi3_tokenizer, make_qwen_tokenizer
from inference.internvl2.families import INTERNVL2_5, PHI3, ModelFamily

_SMALL = {
    "vision_width": 64, "vision_heads": 1, "vision_layers": 2, "vision_inner": 96, "width": 64, "heads": 4,
    "kv_heads": 2, "layers": 3, "inner": 96, "vocabulary": 0, "image_size": 56, "max_tiles": 4,
}  # fmt: skip


def write_small(
    directory: Path,
    size: str = "qwen2-1b",
    *,
    family: ModelFamily | None = None,
    legacy: bool = False,
    llm: Mapping[str, Any] | None = None,
    **dimensions: Any,
) -> Path:
    """Write a small checkpoint like one of `benchmarks.random_checkpoint`, in float32, and return its directory.

    Args:
        directory: The directory to write.
        size: The size in `SIZES` that the checkpoint resembles.
        family: The family of its chat template, by default INTERNVL2_5, or PHI3 for Phi-3.
        legacy: Whether Phi-3's tokenizer is in legacy mode.
        llm: Fields to override in the language model's configuration.
        **dimensions: Dimensions to override.
    """
    phi3 = size.startswith("phi3")
    small = replace(SIZES[size], **{**_SMALL, **dimensions})
    tokenizer = make_phi3_tokenizer(directory, 900, legacy=legacy) if phi3 else make_qwen_tokenizer(directory, 400)
    write_random(small, directory, tokenizer=tokenizer, dtype=torch.float32)
    (directory / "tokenizer.json").unlink(missing_ok=True)  # not all official checkpoints have one
    file = directory / "config.json"
    fields = json.loads(file.read_text())
    fields["template"] = (family or (PHI3 if phi3 else INTERNVL2_5)).template
    fields["llm_config"].update(llm or {})
    file.write_text(json.dumps(fields))
    return directory
