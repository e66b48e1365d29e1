"""LoRA layers with PEFT's parameters, computed in one step with the layers that they adapt.

PEFT computes an adapted layer in several passes over all activations: the base product, its copy,
dropout, two products in the adapter's type, a scaling and a sum. Here y = W x + s · B A drop(x) (LoRA,
arXiv 2106.09685) is one autograd function in the activations' type. The matrix multiplication itself
adds the adapter's product. A 4-bit W (QLoRA, arXiv 2305.14314) is dequantized for one product in the
forward pass and one in the backward pass, and is not kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_fused_layers(config: LoraConfig) -> LoraConfig:
    """Make PEFT adapt linear layers with this module's classes, and return `config`."""
    # PEFT takes the first match, and a Linear4bit is an nn.Linear too.
    config._register_custom_module({Linear4bit: FusedLinear4bit, nn.Linear: FusedLinear})
    return config


class _Fused:
    """A mixin with the forward pass of a layer that has exactly one active adapter."""

    def forward(self: Any, x: Tensor, *_unused: Any, **_ignored: Any) -> Tensor:
        """Apply the layer and its adapter: [..., in] → [..., out], in the type of `x`."""
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        probability = dropout.p if isinstance(dropout, nn.Dropout) and self.training else 0.0
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        adapted = _Adapted(self.get_base_layer(), self.scaling[name], probability)
        result: Tensor = _LoraLinear.apply(x, down, up, adapted)
        return result


class FusedLinear(_Fused, PeftLinear):
    """A linear layer with one active adapter."""


class FusedLinear4bit(_Fused, PeftLinear4bit):
    """A linear layer with 4-bit weights and one active adapter."""


class _Adapted(NamedTuple):
    """The layer W with its bias, the LoRA scale s, and the dropout probability."""

    base: nn.Linear
    scale: float
    dropout: float


class _LoraLinear(torch.autograd.Function):
    """The function W x + bias + s · B A drop(x).

    Shapes: x [..., in], A [rank, in], B [out, rank], and the result [..., out].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, adapted: _Adapted) -> Tensor:
        """Compute the result, keeping x, the low-rank product and the dropout mask for the backward pass."""
        base, scale, dropout = adapted
        rows = x.reshape(-1, x.shape[-1])
        dropped, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        low = dropped @ down.to(x.dtype).t()
        bias = None if base.bias is None else base.bias.to(x.dtype)
        y = nn.functional.linear(rows, _dense(base, x.dtype), bias)
        y.addmm_(low, up.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, low, down, up, mask)
        ctx.adapted, ctx.shape = adapted, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        rows, low, down, up, mask = ctx.saved_tensors
        base, scale, dropout = ctx.adapted
        g = gradients[0].reshape(-1, up.shape[0])
        g_low = (g @ up.to(g.dtype)).mul_(scale)
        dropped = rows if mask is None else _drop(rows, mask, dropout)
        g_up = (g.t() @ low).mul_(scale).to(up.dtype)
        g_down = (g_low.t() @ dropped).to(down.dtype)
        if not ctx.needs_input_grad[0]:
            return None, g_down, g_up, None
        g_rows = g @ _dense(base, g.dtype)
        if mask is None:
            g_rows.addmm_(g_low, down.to(g.dtype))
        else:
            g_rows += _drop(g_low @ down.to(g.dtype), mask, dropout)
        return g_rows.view(ctx.shape), g_down, g_up, None


def _drop(x: Tensor, mask: Tensor, dropout: float) -> Tensor:
    return (x * mask).div_(1 - dropout)


def _dense(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in], dequantized if it is stored in 4 bits."""
    weight: Any = base.weight
    if isinstance(base, Linear4bit):
        weight = dequantize_4bit(weight.data, weight.quant_state)
    dense: Tensor = weight.to(dtype)
    return dense
