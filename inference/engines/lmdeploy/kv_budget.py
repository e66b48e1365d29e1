"""How a card's memory is shared out: weights, KV blocks, room to work.

Plain arithmetic over numbers that the caller has read; knows neither torch nor lmdeploy. Figures: full-size
InternVL2-2B on an H200 (benchmarks/README.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.internvl2.checkpoint_check import weight_bytes

BLOCK_TOKENS: Final = 64
"""Tokens of a KV block: TurboMind's default."""

_USED: Final = 0.92
"""Share of the card that engines may fill; the rest is the driver's, and what a desktop or a monitor takes."""

_WORK_BYTES: Final = 1_600_000_000
"""CUDA context, activations and buffers of one engine at 8192 tokens at once …"""

_WORK_BYTES_PER_TOKEN: Final = 90_000
"""… and for each token more."""

_MOST_BLOCKS: Final = 16384
"""A million tokens: more than any crowd's chats, and a tiny model does not fill a large card."""

_LARGE_CARD: Final = 40_000_000_000
_PREFILL_LARGE: Final = 16384
_PREFILL_SMALL: Final = 8192


class NoRoom(Exception):
    """The card is too small for what was asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one checkpoint takes on a card: bytes of its weights, bytes of one token's keys and values."""

    weights: int
    token: int

    @classmethod
    def of(cls, directory: Path, kv_bits: int, cards: int = 1) -> Needs:
        """Read from a checkpoint directory; of each card where `cards` share the model.

        Raises OSError, KeyError or ValueError when it is none.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))["llm_config"]
        head = config["hidden_size"] // config["num_attention_heads"]
        # A quantised number comes with half-precision scale and zero point for each head.
        bits = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * (head * kv_bits + 32 * (kv_bits < 16))
        return cls(weights=weight_bytes(directory) // cards, token=bits // 8 // cards)


def prefill_tokens(total: int) -> int:
    """Tokens to compute at once on a card of `total` bytes."""
    return _PREFILL_LARGE if total >= _LARGE_CARD else _PREFILL_SMALL


def default_blocks(needs: Needs, total: int, *, engines: int, prefill: int) -> int:
    """KV blocks for each of `engines` side by side on a card of `total` bytes.

    Goes by the whole card, not by what is free, so that the second engine gets what the first one has. Raises NoRoom
    when less than one long conversation (8192 tokens) would be left.
    """
    room = total * _USED / engines - needs.weights - working_bytes(prefill)
    blocks = min(int(room // (BLOCK_TOKENS * needs.token)), _MOST_BLOCKS)
    if blocks * BLOCK_TOKENS < 8192:
        cure = 'set inference.swap = "cold" (one engine at a time), or ' if engines > 1 else ""
        raise NoRoom(
            f"{engines} engine(s) of {needs.weights / 1e9:.1f} GB weights do not fit a card of {total / 1e9:.0f} GB: "
            f"{cure}set inference.lmdeploy.kv_bits = 8, or take a 4-bit (AWQ) checkpoint."
        )
    return blocks


def working_bytes(prefill: int) -> int:
    """What an engine takes beside weights and blocks."""
    return _WORK_BYTES + max(prefill - _PREFILL_SMALL, 0) * _WORK_BYTES_PER_TOKEN


def share_of_free(needs: Needs, blocks: int, free: int) -> float:
    """The share of the free memory that the blocks come to, weights counted off: TurboMind takes nothing else.

    TurboMind 0.18.0 asks for the free memory when the weights are on the card. Raises NoRoom when they do not fit.
    """
    wanted = blocks * BLOCK_TOKENS * needs.token
    room = free - needs.weights
    if not 0 < wanted < 0.97 * room:
        raise NoRoom(
            f"{blocks} KV blocks take {wanted / 1e9:.1f} GB, and {max(room, 0) / 1e9:.1f} GB are free beside the "
            "weights: lower inference.lmdeploy.blocks, or free the card."
        )
    return wanted / room
