"""thumbtune's InternVL2 with its projector in bfloat16, as in XTuner, for benchmarks/peers/training.py."""

from __future__ import annotations

from typing import Any

import torch

from training.xtuner.internvl_model import InternVL2


class Alike(InternVL2):
    """An InternVL2 that, like XTuner's own code, loses small updates of the projector to rounding."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.model.mlp1.to(torch.bfloat16)
