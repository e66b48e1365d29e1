"""The hyperparameters of fine-tuning, and the recipes, which are named sets of hyperparameters.

`training.settings` chooses the recipe and overrides some of its values; `config_file` translates the
result for XTuner.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Objective = Literal["sft", "kto", "dpo"]
"""The objective of training. sft: the likelihood of liked answers (supervised fine-tuning); kto: the likelihoods of
liked and disliked answers, compared with the base model (Kahneman-Tversky optimization, arXiv 2402.01306); dpo: the
likelihood of a liked answer or, where a worse answer to the same prompt is known, the preference for the liked one
(direct preference optimization, arXiv 2305.18290)."""


class Recipe(BaseModel):
    """The hyperparameters of a fine-tuning job.

    The defaults are the values that the recipes for InternVL2-2B share. Source: xtuner 0.2.0,
    configs/internvl/v2/internvl_v2_internlm2_2b_qlora_finetune.py. The learning rate of 1e-6 in that file
    changes almost nothing on a few hundred pairs; public recipes use 2e-5 to 3e-5 and 6 to 10 epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective = "sft"
    """The objective of training, which `training.objective` replaces."""

    kl_penalty: float = Field(0.1, gt=0)
    """β of KTO and DPO. A larger value keeps the model closer to the base model."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """qlora: an adapter on the language model in 4 bits (NF4 with double quantization); lora: an adapter on the model
    in its own type; full: all weights of the language model, which takes 18 bytes of GPU memory per weight."""

    rank: int = Field(128, ge=1)
    """Rank of the adapter."""

    alpha: int = Field(256, ge=1)
    """The adapter's product is multiplied by alpha / rank."""

    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapter."""

    targets: str = ""
    """The linear layers of the language model that get an adapter: a regular expression that matches their full
    names, as in PEFT's `target_modules` (`output`, `.*\\.(wqkv|wo)`, `.*\\.2[0-3]\\..*\\.w[123]`). Empty: all."""

    vision_rank: int = Field(0, ge=0)
    """Rank of an adapter on all linear layers of the vision tower, with the same scale and dropout. 0: none."""

    projector: bool = True
    """Whether the projector between the vision tower and the language model is trained too."""

    epochs: float = Field(6, gt=0)
    """The number of times that each pair is used."""

    batch: int = Field(4, ge=1)
    """The number of pairs per batch."""

    accumulation: int = Field(1, ge=1)
    """The number of batches per optimizer step, divided among the training processes."""

    optimizer: Literal["adamw", "paged_adamw_8bit", "dadapt_adam", "prodigy"] = "adamw"
    """The optimizer. paged_adamw_8bit requires a GPU and takes a quarter of adamw's memory; dadapt_adam and prodigy
    find the learning rate themselves."""

    learning_rate: float = Field(3e-5, gt=0)
    """Peak learning rate."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the optimizer's mean of the gradients."""

    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the optimizer's mean of the squared gradients."""

    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay."""

    clip: float = Field(1.0, gt=0)
    """The maximum norm of the gradient."""

    warmup: float = Field(0.03, ge=0, lt=1)
    """The share of the steps used for warm-up, which is followed by a cosine decay."""

    max_length: int = Field(8192, ge=64)
    """The maximum number of tokens per pair, including picture tokens."""

    checkpointing: Literal["auto"] | bool = "auto"
    """Whether layers recompute their activations in the backward pass, which takes a third more time but much less
    memory. auto: as few layers as the memory allows."""

    save_steps: int = Field(200, ge=0)
    """The number of optimizer steps between checkpoints to resume from. Writing one takes as long as about ten steps.
    0: none."""

    keep_checkpoints: int = Field(2, ge=2)
    """The number of checkpoints kept during a run, including the one being written. mmengine removes the oldest before
    it writes another, so a single one would leave none to resume from in the meantime."""

    @field_validator("targets")
    @classmethod
    def _targets_compile(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


RECIPES: Final[dict[str, dict[str, Any]]] = {
    # From two tutorials for InternVL2-2B: one on dishes of a cuisine (github.com/is1nan1ge/InternVL2-Tutorial, which
    # trains LoRA without quantization), and one on jokes about a picture (github.com/InternLM/Tutorial,
    # docs/L2/InternVL/joke_readme.md).
    "food": {"accumulation": 2, "epochs": 10, "learning_rate": 3e-5, "max_length": 8192},
    "jokes": {"accumulation": 4, "epochs": 6, "learning_rate": 2e-5, "max_length": 6656},
    # For internvl2-tiny on a CPU. With small steps in all layers, the model loses facts before it learns a style;
    # with large steps in the last layer, it does not (benchmarks/README.md).
    "tiny": {
        "rank": 8,
        "alpha": 32,
        "dropout": 0.0,
        "targets": "output|lm_head",
        "epochs": 4,
        "batch": 4,
        "learning_rate": 2e-3,
        "weight_decay": 0.0,
        "warmup": 0.1,
        "max_length": 512,
        "projector": False,
        # A run takes only a minute.
        "save_steps": 0,
    },
}
"""The values in which each recipe differs from the defaults of `Recipe`."""

LARGE: Final = "food"
"""The recipe that `auto` chooses for a large model. It accepts the longest conversations, so that none are left out,
and takes fewer pairs per step, so that a hundred votes yield enough steps."""

SELF_TUNING: Final = ("dadapt_adam", "prodigy")
"""Optimizers that find the learning rate themselves. The configured value is a factor applied to that rate."""
