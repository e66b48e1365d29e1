"""Worker: DeepSpeed's ZeRO as XTuner starts it, on a model that every process has loaded whole.

Knows mmengine's strategies. What is spread, by stage, is the configuration's.
"""

from __future__ import annotations

from typing import Any

from mmengine.device import get_device
from xtuner.engine import DeepSpeedStrategy


class Spread(DeepSpeedStrategy):  # type: ignore[misc]
    """At stage 3 transformers 4.57.6 would load the model in parts, and left weights of it unset when it was tried."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # transformers finds it for as long as somebody holds it, and loads in parts then.
        self.hf_deepspeed_config = None

    def _wrap_model(self, model: Any) -> Any:
        # At stage 3 DeepSpeed moves only the parts that it makes.
        return super()._wrap_model(model.to(get_device()))
