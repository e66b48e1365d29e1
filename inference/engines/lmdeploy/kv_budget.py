"""The division of a GPU's memory among weights, KV cache blocks and working memory.

This module imports neither torch nor lmdeploy. The sizes are computed from the checkpoint, except for
`_CONTEXT_BYTES`, which was measured with the full-size InternVL2-2B on an H200 (benchmarks/README.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.internvl2.model_sizes import read_sizes, stored_bytes

BLOCK_TOKENS: Final = 64
"""The number of tokens in a KV block, which is TurboMind's default."""

USABLE: Final = 0.92
"""The fraction of the GPU's memory that engines may fill; the rest is for the driver and a desktop."""

FEWEST_BLOCKS: Final = 8192 // BLOCK_TOKENS
"""The number of KV blocks that one long conversation needs."""

_CONTEXT_BYTES: Final = 480_000_000
"""The part of an engine's memory that does not depend on the model: CUDA context, libraries and buffers. Including it,
InternVL2-2B was measured to use 1.6 GB besides weights and KV blocks at 8192 prefill tokens."""

_TILING_BYTES: Final = 250_000_000
"""The memory for cutting a picture of 12 megapixels into tiles, computed from the sizes of `gpu_tiling`'s tensors."""

_MAX_BLOCKS: Final = 16384
"""The maximum number of KV blocks (a million tokens), which keeps a tiny model from filling a large GPU."""

_LARGE_CARD: Final = 40_000_000_000
_PREFILL_LARGE: Final = 16384
_PREFILL_SMALL: Final = 8192


class NoRoom(Exception):
    """The GPU is too small for the settings. The error's text says what to change."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The memory that an engine with a model needs on one GPU, in bytes.

    Attributes:
        weights: The memory for the weights.
        token: The memory for one token's keys and values.
        fixed: The memory for the CUDA context, for cutting a picture into tiles, and for the maximum number of
            tiles in the vision tower.
        prefill_token: The memory for each prompt token that is processed in one iteration.
    """

    weights: int
    token: int
    fixed: int
    prefill_token: int

    @classmethod
    def of(cls, directory: Path, kv_bits: int, cards: int = 1) -> ModelMemory:
        """Read the sizes from a checkpoint; if `cards` GPUs share the model, the sizes are those on each GPU.

        The vision tower and the activations are counted in full on each GPU.

        Raises:
            OSError, KeyError, ValueError: The directory does not contain a checkpoint.
        """
        sizes = read_sizes(directory)
        language = stored_bytes(sizes.language_weights) + (sizes.embeddings.stored if sizes.tied else 0)
        vision = stored_bytes(sizes.vision_weights) + stored_bytes(sizes.projector_weights)
        return cls(
            weights=language // cards + vision,
            token=sizes.key_value_bytes(kv_bits) // cards,
            fixed=_CONTEXT_BYTES + _TILING_BYTES + sizes.most_tiles * sizes.tower_bytes,
            prefill_token=sizes.token_bytes,
        )

    def work(self, prefill: int) -> int:
        """Return the memory needed besides weights and KV blocks, with `prefill` prompt tokens per iteration."""
        return self.fixed + prefill * self.prefill_token

    def engine(self, blocks: int, prefill: int) -> int:
        """Return the memory of an engine with `blocks` KV blocks."""
        return self.weights + self.work(prefill) + blocks * BLOCK_TOKENS * self.token


def prefill_tokens(total: int) -> int:
    """Return the number of prompt tokens to process per iteration on a GPU with `total` bytes of memory."""
    return _PREFILL_LARGE if total >= _LARGE_CARD else _PREFILL_SMALL


def default_blocks(memory: ModelMemory, total: int, *, engines: int, prefill: int) -> int:
    """Return the number of KV blocks for each of `engines` engines on a GPU with `total` bytes of memory.

    The number depends on the GPU's total memory, not on the free memory, so that a second engine gets as
    many blocks as the first.

    Raises:
        NoRoom: There is less room than one long conversation (8192 tokens) needs.
    """
    blocks = blocks_within(memory, total * USABLE / engines, prefill=prefill)
    if blocks < FEWEST_BLOCKS:
        cure = 'set inference.swap = "cold" (one engine at a time), or ' if engines > 1 else ""
        raise NoRoom(
            f"{engines} engine(s) with {memory.weights / 1e9:.1f} GB of weights do not fit on a GPU with "
            f"{total / 1e9:.0f} GB: {cure}set inference.lmdeploy.kv_bits = 8, or use a 4-bit (AWQ) checkpoint."
        )
    return blocks


def blocks_within(memory: ModelMemory, room: float, *, prefill: int) -> int:
    """Return the largest number of KV blocks with which an engine takes at most `room` bytes.

    The number is 0 or negative if no block fits.
    """
    left = room - memory.weights - memory.work(prefill)
    return min(int(left // (BLOCK_TOKENS * memory.token)), _MAX_BLOCKS)


def share_of_free(memory: ModelMemory, blocks: int, free: int) -> float:
    """Return the size of `blocks` KV blocks as a fraction of the memory left free by the weights.

    The fraction is meant for `cache_max_entry_count`, which TurboMind 0.18.0 applies to the memory that is
    free once the weights are loaded.

    Raises:
        NoRoom: The blocks do not fit.
    """
    wanted = blocks * BLOCK_TOKENS * memory.token
    room = free - memory.weights
    if not 0 < wanted < 0.97 * room:
        raise NoRoom(
            f"{blocks} KV blocks take {wanted / 1e9:.1f} GB, but only {max(room, 0) / 1e9:.1f} GB remain after the "
            "weights: lower inference.lmdeploy.blocks, or free memory on the GPU."
        )
    return wanted / room
