"""InternViT, the vision tower, which turns the pixels of tiles into features of patches.

The code follows the published architecture (InternVL, arXiv 2312.14238; InternVL 1.5, arXiv 2404.16821)
and its parameter names. This file is copied into checkpoints as part of their model code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .configuration_internvl2 import InternVisionConfig
from .layers_internvl2 import RMSNorm


def _norm(config: InternVisionConfig) -> nn.Module:
    make: Any = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}[config.norm_type]
    return make(config.hidden_size, eps=config.layer_norm_eps)


class InternVisionEmbeddings(nn.Module):
    """A class token followed by patch embeddings, with learned position embeddings."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, self.grid**2 + 1, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """Return position embeddings [1, 1 + height·width, features], resampled (bicubic) if the grid differs."""
        if (height, width) == (self.grid, self.grid):
            return self.position_embedding
        first, rest = self.position_embedding.split([1, self.grid**2], dim=1)
        square = rest.float().reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resampled = functional.interpolate(square, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([first, resampled.flatten(2).transpose(1, 2).to(rest.dtype)], dim=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed tiles [T, channels, H, W] as [T, 1 + patches, width]."""
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(pixel_values.to(dtype))
        count, _, height, width = patches.shape
        tokens = torch.cat([self.class_embedding.expand(count, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens.to(dtype) + self._positions(height, width).to(dtype)


class InternAttention(nn.Module):
    """Self-attention over the patches of a tile, optionally with queries and keys normalized across all heads."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        if width % self.heads:
            raise ValueError(f"vision hidden_size {width} is not a multiple of num_attention_heads {self.heads}")
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(config.dropout)
        self.qk_normalization = config.qk_normalization
        if config.qk_normalization:
            self.q_norm = RMSNorm(width, config.layer_norm_eps)
            self.k_norm = RMSNorm(width, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply self-attention within each tile of `x` [T, N, width]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.qk_normalization:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class InternMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to `x` [..., width]."""
        return self.fc2(self.act(self.fc1(x)))


class InternVisionEncoderLayer(nn.Module):
    """Pre-norm attention and MLP, each scaled per feature (`ls1`, `ls2`) and added to the residual stream."""

    def __init__(self, config: InternVisionConfig, drop_path: float) -> None:
        super().__init__()
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = _norm(config)
        self.norm2 = _norm(config)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.drop_path = drop_path

    def _drop(self, branch: Tensor) -> Tensor:
        """Apply stochastic depth (arXiv 1603.09382): in training, drop the branch for random tiles."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = torch.empty(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device)
        return branch * keep.bernoulli_(1 - self.drop_path).div_(1 - self.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` [T, N, width]."""
        x = x + self._drop(self.attn(self.norm1(x).to(x.dtype)) * self.ls1)
        return x + self._drop(self.mlp(self.norm2(x).to(x.dtype)) * self.ls2)


class InternVisionEncoder(nn.Module):
    """The layers of the vision tower, with stochastic depth increasing linearly from 0 to `drop_path_rate`."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            InternVisionEncoderLayer(config, config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor, keep: bool) -> list[Tensor]:
        """Apply all layers to `x` [T, N, width]; return the last output or, with `keep`, the input and all outputs."""
        states = [x]
        for layer in self.layers:
            # If no earlier tensor needs a gradient, checkpointing would lose the gradients of the layer's weights.
            if self.gradient_checkpointing and self.training and x.requires_grad:
                x = self._gradient_checkpointing_func(layer.__call__, x)
            else:
                x = layer(x)
            states = [*states, x] if keep else [x]
        return states


class InternVisionModel(PreTrainedModel):
    """The vision tower, which has no normalization after its last layer."""

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["InternVisionEncoderLayer"]

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data.normal_(0.0, std)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, InternVisionEmbeddings):
            module.class_embedding.data.normal_(0.0, std)
            module.position_embedding.data.normal_(0.0, std)
        elif isinstance(module, InternVisionEncoderLayer):
            module.ls1.data.fill_(self.config.initializer_factor)
            module.ls2.data.fill_(self.config.initializer_factor)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            module.weight.data.fill_(1.0)
            if isinstance(module, nn.LayerNorm):
                module.bias.data.zero_()

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that computes the patch embeddings."""
        return self.embeddings

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_embeds: Tensor | None = None,
    ) -> Any:
        """Encode tiles [T, channels, H, W] as features [T, 1 + patches, width], with the class token first.

        If `pixel_embeds` is given, it replaces `pixel_values`.

        Raises:
            ValueError: The input is not a batch of tiles.
        """
        if pixel_embeds is None:
            if pixel_values is None or pixel_values.dim() != 4:
                raise ValueError("pixel_values must be a batch of tiles [T, channels, height, width]")
            pixel_embeds = self.embeddings(pixel_values)
        states = self.encoder(pixel_embeds, keep=bool(output_hidden_states))
        output = BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=states[-1][:, 0],
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()
