"""Choose how many layers recompute their activations in the backward pass, based on the free GPU memory.

Recomputing makes a layer a third slower, but frees the activations that the layer would otherwise keep
until the backward pass. Only as many layers as necessary therefore recompute their activations, and none
on a card with enough memory.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import nn

Checkpointing = Literal["auto"] | bool

_SPARE: Final = 1.5e9
"""Bytes left free: workspaces of matrix multiplications, fragments of the allocator, the logits of a batch."""

_TRAINED: Final = 16
"""Bytes that a trained weight takes with its gradient and AdamW's two averages, each in float32."""


_OTHER_MODELS: Final = 1.25
"""What transformers' own layers keep in comparison with ours: at most 1.23 times as much, for Qwen3-0.6B."""


def layers_to_recompute(model: nn.Module, config: Any, tokens: int, mode: Checkpointing) -> int:
    """Return how many of the `config.num_hidden_layers` layers should recompute their activations.

    Args:
        model: A model whose frozen weights are on the GPU and whose trained weights are not there yet.
        config: The language model's configuration.
        tokens: The number of tokens in the largest batch.
        mode: True for all layers, False for none, "auto" for as few as the memory allows.
    """
    layers = int(config.num_hidden_layers)
    if mode != "auto":
        return layers if mode else 0
    if not torch.cuda.is_available():
        return 0
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    free = torch.cuda.mem_get_info()[0] - _SPARE - _TRAINED * trained
    return fewest_layers(config, tokens, free)


def fewest_layers(config: Any, tokens: int, free: float) -> int:
    """Return the smallest number of layers that must recompute their activations to fit into `free` bytes.

    The activations are those of `tokens` tokens in bfloat16. A recomputed layer keeps only its input. Any
    other layer keeps the inputs of both norms, of all projections and of all products; the queries, keys and
    values; and, in the gated MLP, both branches, the activation and the product.
    """
    layers: int = config.num_hidden_layers
    width, inner = config.hidden_size, config.intermediate_size
    recomputed = 2.0 * tokens * width
    whole = 2.0 * tokens * (10 * width + 4 * inner) * (1 if config.model_type == "internlm2" else _OTHER_MODELS)
    available = free - layers * recomputed - 1.5 * whole
    kept = int(max(0.0, available) // (whole - recomputed))
    return max(0, layers - kept)
