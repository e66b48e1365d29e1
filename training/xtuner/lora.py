"""Worker: low-rank adapters, held as PEFT holds them and computed in one step with the layer they are on.

PEFT computes an adapted layer piece by piece: base product, its copy, dropout, two products in the adapter's type, a
scaling, a sum, each a pass over all activations. Here y = W x + s · B A drop(x) (LoRA, arXiv 2106.09685) is one
autograd function in the activations' type: the adapter's product is added by the matrix multiplication itself, and a
4-bit W (QLoRA, arXiv 2305.14314) is unpacked for one product forward and one backward, never kept.

Knows PEFT's layers and bitsandbytes' weights, nothing of models or data.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fused(config: LoraConfig) -> LoraConfig:
    """The same configuration, whose adapted linear layers are computed here."""
    # Looked through in this order; a 4-bit layer is a linear one as well.
    config._register_custom_module({Linear4bit: Adapted4bit, nn.Linear: Adapted})
    return config


class Adapted(PeftLinear):
    """A linear layer with its one adapter, always switched on."""

    def forward(self, x: Tensor, *_unused: Any, **_ignored: Any) -> Tensor:
        """[..., in] → [..., out], in the type of `x`."""
        return _forward(self, x)


class Adapted4bit(PeftLinear4bit):
    """The same on a layer of 4-bit weights."""

    def forward(self, x: Tensor, *_unused: Any, **_ignored: Any) -> Tensor:
        """[..., in] → [..., out], in the type of `x`."""
        return _forward(self, x)


def _forward(layer: Adapted | Adapted4bit, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    dropout = layer.lora_dropout[name]
    chance = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    result: Tensor = _Sum.apply(x, layer.get_base_layer(), down, up, layer.scaling[name], chance)
    return result


class _Sum(torch.autograd.Function):
    """x [..., in], A [rank, in] and B [out, rank] → W x + bias + scale · B A drop(x), [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Linear, down: Tensor, up: Tensor, scale: float, dropout: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        seen, kept = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        low = seen @ down.to(x.dtype).t()
        bias = None if base.bias is None else base.bias.to(x.dtype)
        y = nn.functional.linear(rows, _dense(base, x.dtype), bias)
        y.addmm_(low, up.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, low, down, up, kept)
        ctx.base, ctx.scale, ctx.dropout, ctx.shape = base, scale, dropout, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, down, up, kept = ctx.saved_tensors
        g = gradients[0].reshape(-1, up.shape[0])
        g_low = (g @ up.to(g.dtype)).mul_(ctx.scale)
        seen = rows if kept is None else _dropped(rows, kept, ctx.dropout)
        g_up = (g.t() @ low).mul_(ctx.scale).to(up.dtype)
        g_down = (g_low.t() @ seen).to(down.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None, g_down, g_up, None, None
        g_rows = g @ _dense(ctx.base, g.dtype)
        if kept is None:
            g_rows.addmm_(g_low, down.to(g.dtype))
        else:
            g_rows += _dropped(g_low @ down.to(g.dtype), kept, ctx.dropout)
        return g_rows.view(ctx.shape), None, g_down, g_up, None, None


def _dropped(x: Tensor, kept: Tensor, dropout: float) -> Tensor:
    return (x * kept).div_(1 - dropout)


def _dense(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight [out, in], unpacked if it is of 4 bits."""
    weight: Any = base.weight
    if isinstance(base, Linear4bit):
        weight = dequantize_4bit(weight.data, weight.quant_state)
    dense: Tensor = weight.to(dtype)
    return dense
