"""What `[inference.lmdeploy]` of config.toml holds: the engine for a GPU.

The numbers that follow from the card, where none is given, are worked out by the worker, which sees the card
(lmdeploy_memory.py). Knows names, defaults and limits only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LmdeploySettings(BaseModel):
    """TurboMind's sizes. Every field is a key of `[inference.lmdeploy]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int | None = Field(default=None, ge=16)
    """Memory for conversations, in blocks of 64 tokens (6.3 MB each for InternVL2-2B, 3.1 MB with kv_bits = 8). A
    picture of 13 tiles takes 52 blocks. Unset: what the card has room for, two engines side by side if
    swap = "blue-green" (about 4700 blocks on 80 GB, 650 on 24 GB; a 12 GB card needs swap = "cold")."""

    session_length: int = Field(default=16384, ge=512)
    """The longest conversation in tokens, the answer included; what is older is left out. It is shorter where there
    are fewer blocks."""

    batch: int = Field(default=64, ge=1)
    """So many answers are computed at a time; more wait inside the engine."""

    kv_bits: Literal[4, 8, 16] = 16
    """Bits of each remembered number: 8 halves a conversation's memory and the time to read it; 4 costs quality."""

    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """What is computed in. `auto`: as the checkpoint says; cards before Ampere (T4, V100) need float16."""

    weights: Literal["auto", "hf", "awq", "gptq"] = "auto"
    """The form of the checkpoint's weights: `awq` for a 4-bit one made by lmdeploy. `auto` looks into its config."""

    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one model. InternVL2-2B fits on one: rather list more GPUs in inference.gpus."""

    prefill_tokens: int | None = Field(default=None, ge=512)
    """So many tokens of questions are computed at once: more is quicker and takes memory. Unset: 16384, and 8192 on
    a card below 40 GB."""

    tile_threads: int | None = Field(default=None, ge=1)
    """Threads that decode pictures and cut them into tiles. Unset: as many as there are cores, at most 12."""

    tile_cache_megabytes: int = Field(default=2048, ge=0)
    """Main memory for the tiles of recent pictures (16 MB for a picture of 13 tiles)."""
