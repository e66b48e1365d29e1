"""Choose how many layers recompute their activations in the backward pass, based on the free GPU memory.

Recomputing makes a layer a third slower, but frees the activations that the layer would otherwise keep
until the backward pass. Only as many layers as necessary therefore recompute their activations, and none
on a GPU with enough memory.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from inference.internvl2.model_sizes import Transformer
from training.memory_estimate import bytes_per_trained_weight, whole_layer, work_bytes
from training.worker import world_size

Checkpointing = Literal["auto"] | bool


def layers_to_recompute(model: nn.Module, config: Any, adapter: Any, tokens: int, mode: Checkpointing) -> int:
    """Return how many of the `config.num_hidden_layers` layers should recompute their activations.

    Args:
        model: A model whose frozen weights are on the GPU and whose trained weights are not there yet.
        config: The language model's configuration.
        adapter: The configuration of its adapter, or None if the model is trained in full.
        tokens: The number of tokens in the largest batch.
        mode: True for all layers, False for none, "auto" for as few as the memory allows.
    """
    layers = int(config.num_hidden_layers)
    if mode != "auto":
        return layers if mode else 0
    if not torch.cuda.is_available():
        return 0
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    each = bytes_per_trained_weight("adamw", full=adapter is None, processes=world_size())
    free = torch.cuda.mem_get_info()[0] - work_bytes(config.vocab_size, config.hidden_size) - each * trained
    rank, dropout = (adapter.r, adapter.lora_dropout) if adapter else (0, 0.0)
    return fewest_layers(config, tokens, free, rank=rank, dropout=dropout)


def fewest_layers(config: Any, tokens: int, free: float, *, rank: int = 0, dropout: float = 0.0) -> int:
    """Return the smallest number of layers that must recompute their activations to fit into `free` bytes.

    The activations are those of `tokens` tokens in bfloat16. A recomputed layer keeps only its input; any
    other layer keeps what `whole_layer` counts. `rank` and `dropout` are those of the adapter.
    """
    layers: int = config.num_hidden_layers
    sizes = Transformer(config.hidden_size, config.intermediate_size, layers)
    recomputed = 2.0 * tokens * sizes.width
    whole = tokens * whole_layer(sizes, config.model_type, rank=rank, dropout=dropout)
    available = free - layers * recomputed - 1.5 * whole
    kept = int(max(0.0, available) // (whole - recomputed))
    return max(0, layers - kept)
