"""The InternLM2 language model, from token embeddings to next-token logits, with a key/value cache.

The architecture and the parameter names follow the published InternLM2 (arXiv 2403.17297). This file is
copied into checkpoints as part of their model code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_internvl2 import InternLM2Config
from .layers_internvl2 import RMSNorm, attend, rotate, rotation, visible

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of queries [B, heads, N, size] and of grouped keys and values [B, KV heads, M, size]."""


class InternLM2Attention(nn.Module):
    """Grouped-query attention with a fused projection.

    For each key/value head, the output of `wqkv` holds the query heads of its group, then the key and the
    value.
    """

    def __init__(self, config: InternLM2Config, layer: int) -> None:
        super().__init__()
        heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        if config.hidden_size % heads or heads % self.kv_heads:
            raise ValueError(
                f"num_key_value_heads {self.kv_heads} must divide num_attention_heads {heads}, which must divide "
                f"hidden_size {config.hidden_size}"
            )
        self.layer = layer
        self.groups = heads // self.kv_heads
        self.size = config.hidden_size // heads
        self.wqkv = nn.Linear(config.hidden_size, (heads + 2 * self.kv_heads) * self.size, bias=config.bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention, cache: Cache | None) -> Tensor:
        """Attend from `x` [B, N, width] to the cached and new positions; append the new keys and values to `cache`."""
        parts = self.wqkv(x).unflatten(-1, (self.kv_heads, self.groups + 2, self.size))
        q = parts[..., : self.groups, :].flatten(2, 3).transpose(1, 2)
        k, v = parts[..., -2, :].transpose(1, 2), parts[..., -1, :].transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        return self.wo(attention(q, k, v).transpose(1, 2).flatten(2))


class InternLM2MLP(nn.Module):
    """Gated MLP: w2(act(w1 x) · w3 x)."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to `x` [..., width]."""
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class InternLM2DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream.

    If `gradient_checkpointing` is set, the activations are recomputed in the backward pass.
    """

    gradient_checkpointing = False

    def __init__(self, config: InternLM2Config, layer: int) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config, layer)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention, cache: Cache | None) -> Tensor:
        """Apply attention and the MLP to hidden states `x` [B, N, width]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, attention, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2PreTrainedModel(PreTrainedModel):
    """Base class that integrates the InternLM2 models with transformers."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = "past_key_values"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        if isinstance(module, RMSNorm):
            module.weight.data.fill_(1.0)


class InternLM2Model(InternLM2PreTrainedModel):
    """InternLM2 without its output layer."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.tok_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.tok_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | Sequence[tuple[Tensor, Tensor]] | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        attention: Attention | None = None,
        **_unused: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states [B, N, width] after the final norm.

        Exactly one of `input_ids` [B, N] and `inputs_embeds` [B, N, width] must be given. `attention_mask` is
        [B, M + N] over M cached and N new positions (1 for a position to attend to), or a complete 4-dimensional
        mask. By default, `position_ids` [B, N] continue after the cache. A `Cache` passed as `past_key_values`
        is extended in place. `attention`, if given, computes the attention instead, and `attention_mask` has no effect.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        checkpointing = self.training and any(layer.gradient_checkpointing for layer in self.layers)
        cache = _cache(past_key_values, (self.config.use_cache if use_cache is None else use_cache), checkpointing)
        past = 0 if cache is None else int(cache.get_seq_length())
        new = x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + new, device=x.device)[None]
        cos, sin = (part[:, None] for part in rotation(self.config, position_ids, past + new))
        if attention is None:
            mask, causal = visible(attention_mask, past, new, x)
            attention = partial(attend, mask=mask, causal=causal)
        states: list[Tensor] = []
        layer: Any
        for layer in self.layers:
            if output_hidden_states:
                states.append(x)
            if checkpointing and layer.gradient_checkpointing and x.requires_grad:
                x = layer._gradient_checkpointing_func(layer.__call__, x, cos, sin, attention, None)
            else:
                x = layer(x, cos, sin, attention, cache)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=cache, hidden_states=(*states, x) if output_hidden_states else None
        )


def _cache(given: Cache | Sequence[tuple[Tensor, Tensor]] | None, wanted: bool, checkpointing: bool) -> Cache | None:
    """Return the cache to extend, or None.

    No cache is used with gradient checkpointing, because recomputation would append the keys twice.
    """
    if checkpointing:
        return None
    if given is None:
        return DynamicCache() if wanted else None
    if isinstance(given, Cache):
        return given
    cache = DynamicCache()
    for layer, (k, v) in enumerate(given):
        cache.update(k, v, layer)
    return cache


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """InternLM2 with its output layer; `generate` is inherited from transformers."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output layer."""
        self.output = new_embeddings

    def get_decoder(self) -> InternLM2Model:
        """Return the underlying `InternLM2Model`, without the output layer."""
        return self.model

    def set_decoder(self, decoder: InternLM2Model) -> None:
        """Replace the underlying `InternLM2Model`, keeping the output layer."""
        self.model = decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | Sequence[tuple[Tensor, Tensor]] | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Compute float32 logits [B, N, vocabulary].

        Arguments not described here are those of `InternLM2Model.forward`. If `logits_to_keep` is a number
        n > 0, only the last n positions are kept; if it is a tensor of indices, only the positions listed. With
        `labels` [B, N] (−100 to ignore a position), the output includes the mean cross-entropy of the next
        tokens; this requires the logits of all positions.

        Raises:
            ValueError: `output_attentions` is set, but scaled_dot_product_attention returns no attention
                weights.
        """
        if output_attentions:
            raise ValueError("attention weights are not available: attention is scaled_dot_product_attention")
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(hidden.last_hidden_state[:, keep]).float()
        loss = None if labels is None else next_token_loss(logits, labels)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=hidden.past_key_values, hidden_states=hidden.hidden_states
        )
        return output if return_dict is not False else output.to_tuple()


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` [B, N, vocabulary] for the next tokens in `labels` [B, N]."""
    if logits.shape[1] != labels.shape[1]:
        raise ValueError("labels need the logits of every position: leave logits_to_keep at 0")
    targets = labels[:, 1:].flatten().to(logits.device)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
