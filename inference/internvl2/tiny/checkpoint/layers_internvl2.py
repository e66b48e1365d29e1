"""Layers of InternVL2: RMS norm, rotary position embeddings, attention and pixel shuffle.

This file is copied into checkpoints as part of their model code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration_internvl2 import InternLM2Config


class RMSNorm(nn.Module):
    """Root-mean-square normalization over the last dimension, in the input's data type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` [..., width]."""
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotation(config: InternLM2Config, position_ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine of the rotary position embedding, each as float32 [B, N, head size].

    The argument `length` counts all positions, including cached ones and, in a packed batch, those of all samples.
    The scaling "linear" divides positions by the factor; "dynamic" (NTK-aware) raises the base once the longest
    sequence exceeds the maximum, `max_position_embeddings`:
    base · (factor · longest / maximum − (factor − 1)) ^ (d / (d − 2)), where d is the head size. The base depends
    only on the positions of the current call; cached keys keep the rotation of the call that computed them, as in the
    official code. The embedding is described in arXiv 2104.09864.
    """
    size = config.hidden_size // config.num_attention_heads
    base = float(config.rope_theta)
    scaling = config.rope_scaling or {"type": "none", "factor": 1.0}
    positions = position_ids.float()
    if scaling["type"] == "linear":
        positions = positions / scaling["factor"]
    elif scaling["type"] == "dynamic" and length > config.max_position_embeddings:
        factor, longest = scaling["factor"], max(int(position_ids.max()) + 1, config.max_position_embeddings)
        base *= (factor * longest / config.max_position_embeddings - (factor - 1)) ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, device=position_ids.device).float() / size
    angles = positions[..., None] * (1.0 / base**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [B, heads, N, size] by their positions, pairing features i and i + size/2."""
    rotated: Tensor = _Rotation.apply(x, *(part.to(x.dtype).chunk(2, dim=-1)[0] for part in (cos, sin)))
    return rotated


class _Rotation(torch.autograd.Function):
    """The rotation x · cos + [−second, first] · sin, where `first` and `second` are the halves of `x`.

    Compared with evaluating the formula directly, this implementation halves the memory traffic and does not
    save `x` for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Rotate `x` forward (`direction` 1) or back (−1). The last dimension of `cos` and `sin` is half that of `x`."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.empty_like(x)
    left, right = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=direction)
    return rotated


class LongRope(nn.Module):
    """The rotary position embedding of Phi-3, with one set of factors for short sequences and one for long ones.

    The factors are described in arXiv 2402.13753 (LongRoPE). transformers' own embedding, `rope`, uses the long
    factors if any position in a call is `short_length` or above, so it would rotate the parts of one sequence
    differently. If `long` is set, all calls use the long factors; if it is a tensor [B, N], those positions do for
    which it is true.
    """

    def __init__(self, rope: nn.Module, short_length: int) -> None:
        super().__init__()
        self.rope = rope
        self.short_length = short_length
        self.long: bool | Tensor = False

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosine and sine for positions [B, N], each as [B, N, head size] in the type of `x`."""
        if isinstance(self.long, bool):
            return self._rotation(x, position_ids, self.long)
        long = self._rotation(x, position_ids, True)
        short = self._rotation(x, position_ids.clamp(max=self.short_length - 1), False)
        cos, sin = (torch.where(self.long[..., None], *each) for each in zip(long, short, strict=True))
        return cos, sin

    def _rotation(self, x: Tensor, position_ids: Tensor, long: bool) -> tuple[Tensor, Tensor]:
        if long:
            position_ids = torch.cat([position_ids, torch.full_like(position_ids[:, :1], self.short_length)], dim=1)
        cos, sin = self.rope(x, position_ids)
        return (cos[:, :-1], sin[:, :-1]) if long else (cos, sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Compute the attention of queries [B, heads, N, size] to grouped keys and values [B, KV heads, M, size].

    The mask is None or broadcasts to [B, 1, N, M]; True or 0 allows attention, False or −inf prevents it.
    """
    # CPU kernels, and CUDA's half-precision flash kernel, read shared heads in place; the other CUDA kernels do not
    # support groups (torch would fall back to materializing all scores), so heads are repeated for them.
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and mask is not None and q.device.type == "cuda":
        return attend_one(q, k, v, mask)
    in_place = q.device.type == "cpu" or (mask is None and q.dtype in (torch.float16, torch.bfloat16))
    if groups > 1 and not in_place:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1 and in_place
    )


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute the attention of one query per row, with the same result as `attend`.

    Keys and values, which are by far the largest tensors here, are read once and in place.
    """
    grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    scores = (grouped @ k.mT).float() * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return (weights @ v).flatten(1, 2).unsqueeze(2)


def visible(attention_mask: Tensor | None, past: int, new: int, x: Tensor) -> tuple[Tensor | None, bool]:
    """Return the attention mask (True allows attention) or None, and whether to set the kernel's causal flag."""
    if attention_mask is not None and attention_mask.dim() == 4:
        return (attention_mask if attention_mask.dtype == torch.bool else attention_mask.to(x.dtype)), False
    padded = attention_mask is not None and not bool(attention_mask.all())
    if padded and attention_mask is not None and attention_mask.shape[1] != past + new:
        raise ValueError(f"attention_mask covers {attention_mask.shape[1]} of {past + new} cached and new positions")
    if not padded:
        if new == 1:
            return None, False
        if past == 0:
            return None, True
    rows = torch.arange(past, past + new, device=x.device)[:, None]
    columns = torch.arange(past + new, device=x.device)[None]
    mask = (columns <= rows)[None, None]
    if padded and attention_mask is not None:
        # A padded position attends to itself, because the softmax of an empty row is undefined; its output is unused.
        mask = mask & attention_mask[:, None, None].bool() | (columns == rows)
    return mask, False


def pixel_shuffle(x: Tensor, ratio: float, version: str) -> Tensor:
    """Fold neighbouring patches into features: [T, W, H, C] → [T, W·ratio, H·ratio, C/ratio²].

    Version "v1" leaves the two spatial axes swapped, because the first official releases were trained with
    swapped axes; version "v2" does not.
    """
    count, width, height, features = x.shape
    x = x.reshape(count, width, int(height * ratio), int(features / ratio)).transpose(1, 2)
    x = x.reshape(count, int(height * ratio), int(width * ratio), int(features / ratio**2))
    return x if version == "v1" else x.transpose(1, 2).contiguous()
