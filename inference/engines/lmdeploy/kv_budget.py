"""The division of a GPU's memory among weights, KV cache blocks and working memory.

This module imports neither torch nor lmdeploy. The constants were measured with the full-size
InternVL2-2B on an H200 (benchmarks/README.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.internvl2.checkpoint_check import weight_bytes

BLOCK_TOKENS: Final = 64
"""The tokens of a KV block: TurboMind's default."""

_USABLE: Final = 0.92
"""The share of the card that engines may fill; the rest is left to the driver and to a desktop."""

_WORK_BYTES: Final = 1_600_000_000
"""The memory of one engine's CUDA context, activations and buffers at 8192 prefill tokens."""

_WORK_BYTES_PER_TOKEN: Final = 90_000
"""The working memory that each further prefill token adds."""

_MAX_BLOCKS: Final = 16384
"""The most KV blocks: a million tokens, so that a tiny model does not fill a large card."""

_LARGE_CARD: Final = 40_000_000_000
_PREFILL_LARGE: Final = 16384
_PREFILL_SMALL: Final = 8192


class NoRoom(Exception):
    """The GPU is too small for the settings. The error's text says what to change."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The memory that a model needs on one GPU, in bytes: for its weights, and for one token's keys and values."""

    weights: int
    token: int

    @classmethod
    def of(cls, directory: Path, kv_bits: int, cards: int = 1) -> ModelMemory:
        """Read the sizes from a checkpoint; if `cards` GPUs share the model, the sizes are those on each GPU.

        Raises:
            OSError, KeyError, ValueError: The directory does not contain a checkpoint.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))["llm_config"]
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        # Quantization adds a half-precision scale and zero point for each head.
        bits = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * (head * kv_bits + 32 * (kv_bits < 16))
        return cls(weights=weight_bytes(directory) // cards, token=bits // 8 // cards)


def prefill_tokens(total: int) -> int:
    """Return the number of prompt tokens to compute per iteration on a GPU with `total` bytes of memory."""
    return _PREFILL_LARGE if total >= _LARGE_CARD else _PREFILL_SMALL


def default_blocks(memory: ModelMemory, total: int, *, engines: int, prefill: int) -> int:
    """Return the number of KV blocks for each of `engines` engines on a GPU with `total` bytes of memory.

    The number depends on the GPU's total memory, not on the free memory, so that a second engine gets as
    many blocks as the first.

    Raises:
        NoRoom: There is less room than one long conversation (8192 tokens) needs.
    """
    room = total * _USABLE / engines - memory.weights - working_bytes(prefill)
    blocks = min(int(room // (BLOCK_TOKENS * memory.token)), _MAX_BLOCKS)
    if blocks * BLOCK_TOKENS < 8192:
        cure = 'set inference.swap = "cold" (one engine at a time), or ' if engines > 1 else ""
        raise NoRoom(
            f"{engines} engine(s) of {memory.weights / 1e9:.1f} GB weights do not fit a card of {total / 1e9:.0f} GB: "
            f"{cure}set inference.lmdeploy.kv_bits = 8, or take a 4-bit (AWQ) checkpoint."
        )
    return blocks


def working_bytes(prefill: int) -> int:
    """Return the memory in bytes that an engine uses in addition to its weights and KV blocks."""
    return _WORK_BYTES + max(prefill - _PREFILL_SMALL, 0) * _WORK_BYTES_PER_TOKEN


def share_of_free(memory: ModelMemory, blocks: int, free: int) -> float:
    """Return what share of the memory left free by the weights is taken up by `blocks` KV blocks.

    The share is meant for `cache_max_entry_count`, which TurboMind 0.18.0 applies to the memory that is
    free once the weights are loaded.

    Raises:
        NoRoom: The blocks do not fit.
    """
    wanted = blocks * BLOCK_TOKENS * memory.token
    room = free - memory.weights
    if not 0 < wanted < 0.97 * room:
        raise NoRoom(
            f"{blocks} KV blocks take {wanted / 1e9:.1f} GB, and {max(room, 0) / 1e9:.1f} GB are free beside the "
            "weights: lower inference.lmdeploy.blocks, or free the card."
        )
    return wanted / room
