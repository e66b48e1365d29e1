"""Our model with the projector in bfloat16, as XTuner trains it; for benchmarks/training.py."""

from __future__ import annotations

from typing import Any

import torch

from training.xtuner.internvl_model import InternVL2


class Alike(InternVL2):
    """Loses small steps of the projector in rounding, like XTuner's own code."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.model.mlp1.to(torch.bfloat16)
