"""Worker: how many layers' activations are recomputed in the backward pass, by the memory at hand.

Recomputing a layer costs a third more of its time and saves what it would keep until then. So as few layers as fit
are recomputed, and on a card with room none. Knows the sizes of InternLM2's activations and the card's free memory.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import nn

Checkpointing = Literal["auto"] | bool

_SPARE: Final = 1.5e9
"""Bytes left alone: matrix multiplications' workspaces, what the allocator cannot use, a logits' batch."""

_TRAINED: Final = 16
"""Bytes of a trained weight, its gradient and AdamW's two averages, float32 each."""


def layers_to_recompute(model: nn.Module, config: Any, tokens: int, wanted: Checkpointing) -> int:
    """Of `config.num_hidden_layers`. `model` has its frozen weights on the GPU, the trained ones not yet.

    `config` is InternLM2's, `tokens` the greatest batch. `wanted` True recomputes all layers, False none.
    """
    layers = int(config.num_hidden_layers)
    if wanted != "auto":
        return layers if wanted else 0
    if not torch.cuda.is_available():
        return 0
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    free = torch.cuda.mem_get_info()[0] - _SPARE - _TRAINED * trained
    return fitting(config, tokens, free)


def fitting(config: Any, tokens: int, free: float) -> int:
    """The fewest layers to recompute in `free` bytes for activations of `tokens` tokens in bfloat16."""
    layers: int = config.num_hidden_layers
    width, inner = config.hidden_size, config.intermediate_size
    stream = 2.0 * tokens * width
    """A layer's input, all that is kept of one that is recomputed."""
    whole = 2.0 * tokens * (10 * width + 4 * inner)
    """Inputs of both norms, projections and products; queries, keys, values; the gate's two sides, act and product."""
    room = free - layers * stream - 1.5 * whole
    kept = int(max(0.0, room) // (whole - stream))
    return max(0, layers - kept)
