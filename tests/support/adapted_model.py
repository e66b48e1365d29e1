"""A model with a LoRA adapter, loaded as the training worker loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.job import Job
from training.run_folder import BASE
from training.xtuner.internvl_model import InternVL2


def adapted_model(job: Job, targets: list[str] | None, **settings: Any) -> Any:
    """Return the base model of a prepared job, in training mode, with adapters on the linear layers `targets`.

    If `targets` is None, all of them are adapted. `settings` are passed to `InternVL2`.
    """
    return InternVL2(
        model_path=str(Path(job.work) / BASE),
        freeze_llm=True,
        freeze_visual_encoder=True,
        quantization_llm=False,
        llm_lora={"type": "peft.LoraConfig", "r": 4, "target_modules": targets, "task_type": "CAUSAL_LM"},
        **settings,
    ).train()
