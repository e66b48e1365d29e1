"""The InternVL2 model, a language model whose picture tokens are replaced by projected vision features.

The architecture and the parameter names follow the published InternVL 1.5 (arXiv 2404.16821), so
official checkpoints load unchanged. This file is copied into checkpoints as their model
code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_internvl2 import InternVLChatConfig

# transformers copies only the files that this one imports, so every file of the model code must be imported here.
from .layers_internvl2 import LongRope, pixel_shuffle
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM, next_token_loss


class InternVLChatModel(PreTrainedModel, GenerationMixin):
    """Vision-language model with the architecture of InternVL 1.5 to 3.5.

    Attributes:
        num_image_token: The number of `<IMG_CONTEXT>` tokens per tile.
        img_context_token_id: The tokenizer's ID of `<IMG_CONTEXT>`; set it before using pictures.
    """

    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = [
        "InternVisionEncoderLayer",
        "InternLM2DecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "Phi3DecoderLayer",
    ]
    _skip_keys_device_placement = "past_key_values"
    # Old checkpoints contain rotary buffers, which this code computes instead.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq"]

    def __init__(self, config: InternVLChatConfig) -> None:
        super().__init__(config)
        if config.use_backbone_lora or config.use_llm_lora:
            raise ValueError("this checkpoint's LoRA adapters are not merged; merge them into the weights first")
        vision, llm = config.vision_config, config.llm_config
        grid = (config.force_image_size or vision.image_size) // vision.patch_size
        self.num_image_token = int(grid**2 * config.downsample_ratio**2)
        self.img_context_token_id: int | None = None
        self.vision_model = InternVisionModel(vision)
        # XTuner requests flash_attention_2, which needs another package.
        llm._attn_implementation = "sdpa"
        name = llm.architectures[0]
        language = InternLM2ForCausalLM if name == "InternLM2ForCausalLM" else getattr(transformers, name)
        self.language_model = language(llm)
        if config.short_length is not None:
            self.language_model.model.rotary_emb = LongRope(self.language_model.model.rotary_emb, config.short_length)
        folded = vision.hidden_size * int(1 / config.downsample_ratio) ** 2
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(folded),
            nn.Linear(folded, llm.hidden_size),
            nn.GELU(),
            nn.Linear(llm.hidden_size, llm.hidden_size),
        )
        self.post_init()
        if llm.tie_word_embeddings:
            # transformers does not quantize the modules in this list; a quantized output layer could not share weights.
            self._keep_in_fp32_modules = ["lm_head"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, self.config.llm_config.initializer_range)
            module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the output layer to the token embeddings if the language model's configuration requires it."""
        self.language_model.tie_weights(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output layer."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's output layer."""
        self.language_model.set_output_embeddings(new_embeddings)

    def expect(self, length: int) -> None:
        """Prepare for calls that each process a part of a sequence of `length` positions, including the answer.

        Phi-3 uses other rotary factors for sequences longer than the configuration's `short_length`, and by default
        chooses them based on the positions in each call. Cached keys and values can be reused only between sequences
        that use the same factors. For other models, which have one set of factors, this method does nothing.
        """
        if self.config.short_length is not None:
            self.language_model.model.rotary_emb.long = length > self.config.short_length

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Encode normalized tiles [T, 3, S, S] as features [T, tokens, LLM width].

        With the configured tile side S, each tile yields `num_image_token` tokens.
        """
        return self.mlp1(unprojected(self.vision_model, self.config, pixel_values))

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Return embeddings [B, N, width] of `input_ids` [B, N], with picture tokens replaced by `features`.

        `features` [T, tokens, width] are inserted in order.

        Raises:
            ValueError: `features` and the picture tokens differ in number. Without this check, misplaced
                features would silently cause wrong answers or faulty training.
        """
        embeds = self.language_model.get_input_embeddings()(input_ids)
        if features is None:
            return embeds
        if self.img_context_token_id is None:
            raise ValueError("set img_context_token_id to the tokenizer's ID of <IMG_CONTEXT> first")
        positions = input_ids == self.img_context_token_id
        features = features.reshape(-1, embeds.shape[-1])
        if int(positions.sum()) != len(features):
            raise ValueError(f"{int(positions.sum())} <IMG_CONTEXT> tokens for {len(features)} picture features")
        return embeds.masked_scatter(positions[..., None], features.to(embeds))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_flags: Tensor | None = None,
        past_key_values: Cache | Sequence[tuple[Tensor, Tensor]] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Compute float32 logits [B, N, vocabulary] and, if `labels` are given, the loss.

        Pass tiles `pixel_values` [T, 3, S, S] and token IDs `input_ids` [B, N], or `inputs_embeds` [B, N, width]
        instead of both. `image_flags` ([T] or [T, 1]) is 1 for real tiles; the features of other tiles (the
        placeholders in text-only samples) are computed and discarded. The remaining arguments are those of the
        language model's `forward`.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give either input_ids or inputs_embeds")
            features = None
            if pixel_values is not None:
                features = self.extract_feature(pixel_values)
                if image_flags is not None:
                    features = features[image_flags.flatten() == 1]
            inputs_embeds = self.embed(input_ids, features)
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            logits_to_keep=logits_to_keep,
        )
        joined = CausalLMOutputWithPast(
            loss=None if labels is None else next_token_loss(output.logits.float(), labels),
            logits=output.logits.float(),
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )
        return joined if return_dict is not False else joined.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        output_hidden_states: bool | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate the tokens that follow `input_ids` [B, N].

        Pictures are given either as tiles in `pixel_values` or as `visual_features` computed from the tiles.
        `generation_config` (by default the checkpoint's own) and `generate_kwargs` are passed to transformers'
        `generate`. Pad batches on the left.

        Returns:
            The new tokens only, [B, at most `max_new_tokens`].
        """
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        if visual_features is None and pixel_values is not None:
            visual_features = self.extract_feature(pixel_values)
        if generation_config is None and self.generation_config.eos_token_id is not None:
            generation_config = self.generation_config
        return self.language_model.generate(
            inputs_embeds=self.embed(input_ids, visual_features),
            attention_mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            generation_config=generation_config,
            output_hidden_states=output_hidden_states,
            use_cache=True,
            **generate_kwargs,
        )


def unprojected(vision: nn.Module, config: InternVLChatConfig, pixel_values: Tensor) -> Tensor:
    """Return the vision features [T, num_image_token, width] of tiles [T, 3, S, S], before the projector."""
    layer = config.select_layer
    output = vision(pixel_values=pixel_values, output_hidden_states=layer != -1)
    states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    side = int((states.shape[1] - 1) ** 0.5)
    square = states[:, 1:].unflatten(1, (side, side))
    return pixel_shuffle(square, config.downsample_ratio, config.ps_version).flatten(1, 2)
