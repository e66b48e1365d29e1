"""Our model with one thing as XTuner has it, for benchmarks/training.py: the projector trained in bfloat16."""

from __future__ import annotations

from typing import Any

import torch

from training.xtuner.internvl_model import InternVL2


class Alike(InternVL2):
    """Small steps of the projector are lost in rounding, as in XTuner's own path."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.model.mlp1.to(torch.bfloat16)
