"""The knobs of a fine-tuning, what each of them turns, and the recipes, which set them by name.

Knows names, bounds and numbers. Which recipe is taken, and what an operator turns himself, is told by settings.py; what
XTuner makes of them is recipe.py's.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Recipe(BaseModel):
    """The numbers of one fine-tuning. The defaults are what the recipes for InternVL2-2B have in common.

    Source: xtuner 0.2.0, configs/internvl/v2/internvl_v2_internlm2_2b_qlora_finetune.py; its shipped learning rate
    of 1e-6 is close to a no-op on a few hundred pairs, public recipes take 2e-5 to 3e-5 and 6 to 10 epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["qlora", "lora", "full"] = "qlora"
    """qlora: an adapter on a language model in 4 bits (NF4, its scales quantised too); lora: on one in its own type;
    full: all weights of the language model, which takes some 16 bytes of memory for each."""

    rank: int = Field(128, ge=1)
    """Rank of the adapter."""

    alpha: int = Field(256, ge=1)
    """Scale of the adapter: its product is multiplied by alpha / rank."""

    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapter."""

    targets: str = ""
    """Which linear layers of the language model get an adapter: a regular expression that matches their whole names,
    as PEFT's `target_modules` takes it (`output`, `.*\\.(wqkv|wo)`, `.*\\.2[0-3]\\..*\\.w[123]`). Empty: all."""

    vision_rank: int = Field(0, ge=0)
    """Rank of an adapter on all linear layers of the vision tower, of the same scale and dropout. 0: none."""

    projector: bool = True
    """Train the projector between vision and language as well."""

    epochs: float = Field(6, gt=0)
    """How often each pair is seen."""

    batch: int = Field(4, ge=1)
    """Pairs that are computed at once."""

    accumulation: int = Field(1, ge=1)
    """Batches in one optimiser step. Processes that train together share them."""

    optimizer: Literal["adamw", "paged_adamw_8bit", "dadapt_adam", "prodigy"] = "adamw"
    """paged_adamw_8bit takes a quarter of the memory, on a GPU; dadapt_adam and prodigy find their learning rate."""

    learning_rate: float = Field(3e-5, gt=0)
    """Peak learning rate."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the optimiser's mean of the gradients."""

    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of its mean of their squares."""

    weight_decay: float = Field(0.05, ge=0)
    """Weight decay, apart from the gradient."""

    clip: float = Field(1.0, gt=0)
    """Largest norm of a gradient."""

    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps that warm up; cosine decay follows."""

    max_length: int = Field(8192, ge=64)
    """Most tokens of a pair, picture tokens included."""

    checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: a third slower, much less memory. auto: of as few layers as fit."""

    save_steps: int = Field(200, ge=0)
    """A checkpoint to continue from after so many optimiser steps: one takes as long as some ten steps. 0: none."""

    keep_checkpoints: int = Field(2, ge=2)
    """How many checkpoints are kept while a run lasts, the one that is being written included: the oldest is removed
    before that begins, so one alone would leave none to continue from meanwhile."""

    @field_validator("targets")
    @classmethod
    def _targets_compile(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


RECIPES: Final[dict[str, dict[str, Any]]] = {
    # The two tutorials' for InternVL2-2B: dishes of a cuisine, and jokes about a picture.
    "food": {"accumulation": 2, "epochs": 10, "learning_rate": 3e-5, "max_length": 8192},
    "jokes": {"accumulation": 4, "epochs": 6, "learning_rate": 2e-5, "max_length": 6656},
    # The stand-in of a few million weights, on a CPU: small steps in all its layers cost it facts before they teach it
    # a manner, large ones in its last layer alone do not (benchmarks/README.md). Its eyes are left alone.
    "tiny": {
        "rank": 8,
        "alpha": 32,
        "dropout": 0.0,
        "targets": "output",
        "epochs": 4,
        "batch": 4,
        "learning_rate": 2e-3,
        "weight_decay": 0.0,
        "warmup": 0.1,
        "max_length": 512,
        "projector": False,
        # Its runs last a minute.
        "save_steps": 0,
    },
}
"""What each recipe changes of `Recipe`'s defaults."""

LARGE: Final = "food"
"""What auto means for a large model: the longest conversations, so that no liked one is left out, and fewer pairs a
step, so that a community's first hundred votes are enough of them."""

SELF_TUNING: Final = ("dadapt_adam", "prodigy")
"""Optimisers whose learning rate is a factor of the one that they find."""
