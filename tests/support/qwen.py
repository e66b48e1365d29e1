"""A small InternVL checkpoint with random weights whose language model is Qwen2 or Qwen3, in the official layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_checkpoint import SIZES, write_random
from benchmarks.vocabulary import make_qwen_tokenizer
from inference.internvl2.families import INTERNVL2_5, ModelFamily

_SMALL = {
    "vision_width": 64, "vision_heads": 1, "vision_layers": 2, "vision_inner": 96, "width": 64, "heads": 4,
    "kv_heads": 2, "layers": 3, "inner": 96, "vocabulary": 0, "image_size": 56, "max_tiles": 4,
}  # fmt: skip


def write_qwen(
    directory: Path, size: str = "qwen2-1b", *, family: ModelFamily = INTERNVL2_5, **dimensions: Any
) -> Path:
    """Write a small checkpoint like one of `benchmarks.random_checkpoint`, in float32, and return its directory."""
    small = replace(SIZES[size], **{**_SMALL, **dimensions})
    write_random(small, directory, tokenizer=make_qwen_tokenizer(directory, 400), dtype=torch.float32)
    (directory / "tokenizer.json").unlink()  # not all official checkpoints have one
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "template": family.template}))
    return directory
