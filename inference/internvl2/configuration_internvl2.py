"""The configuration of an InternVL2 checkpoint: vision tower, language model and their combination.

Reads the official `config.json` files (InternVL2 and InternVL 1.5) by their field names and keeps unused fields. This
file is copied into checkpoints as their configuration code, so it imports only transformers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

SUPPORTED_LLM = "InternLM2ForCausalLM"


class InternVisionConfig(PretrainedConfig):
    """The configuration of InternViT.

    `norm_type` is "layer_norm" (300M) or "rms_norm" (6B). `patch_size` and `image_size` are in pixels, `hidden_size`
    and `intermediate_size` in features.
    """

    model_type = "intern_vit_6b"

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 224,
        qkv_bias: bool = False,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        qk_normalization: bool = True,
        num_hidden_layers: int = 48,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        if norm_type not in ("layer_norm", "rms_norm"):
            raise ValueError(f'vision norm_type is "layer_norm" or "rms_norm", not {norm_type!r}')


class InternLM2Config(PretrainedConfig):
    """The configuration of InternLM2. `rope_scaling` is None or {"type": "linear" | "dynamic", "factor": at least 1}.

    `attn_implementation`, a plain field of official files ("eager", "flash_attention_2"), is accepted and has no
    effect: attention is PyTorch's scaled_dot_product_attention with its fastest kernel.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 103168,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = False,
        bias: bool = True,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        if rope_scaling is not None:
            kind, factor = rope_scaling.get("type"), rope_scaling.get("factor")
            if kind not in ("linear", "dynamic") or not isinstance(factor, int | float) or factor < 1:
                raise ValueError(f"rope_scaling needs a type (linear or dynamic) and a factor ≥ 1, not {rope_scaling}")
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )


class InternVLChatConfig(PretrainedConfig):
    """The configuration of InternVL2.

    `vision_config` and `llm_config` are dictionaries or configurations. `force_image_size` is the side of a tile in
    pixels; `downsample_ratio` 0.5 and `ps_version` describe the pixel shuffle; `*_dynamic_patch` limit the tiles of one
    picture, not counting the thumbnail. Raises ValueError for a language model other than InternLM2.
    """

    model_type = "internvl_chat"
    is_composition = True
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "vision_config": InternVisionConfig,
        "llm_config": InternLM2Config,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: dict[str, Any] | InternLM2Config | None = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        pad2square: bool = False,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("tie_word_embeddings", None)
        super().__init__(tie_word_embeddings=False, **kwargs)
        if vision_config is None:
            vision_config = InternVisionConfig(architectures=["InternVisionModel"])
        elif isinstance(vision_config, dict):
            vision_config = InternVisionConfig(**vision_config)
        if llm_config is None:
            llm_config = InternLM2Config(architectures=[SUPPORTED_LLM])
        elif isinstance(llm_config, dict):
            _refuse_other_families(llm_config)
            llm_config = InternLM2Config(**llm_config)
        self.vision_config = vision_config
        self.llm_config = llm_config
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.pad2square = pad2square
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.hidden_size = self.llm_config.hidden_size
        # The official code always unties the embeddings.
        self.llm_config.tie_word_embeddings = False
        if ps_version not in ("v1", "v2"):
            raise ValueError(f'ps_version is "v1" or "v2", not {ps_version!r}')


def _refuse_other_families(llm_config: dict[str, Any]) -> None:
    """Raise ValueError unless the language model is InternLM2."""
    named = (llm_config.get("architectures") or [None])[0] or llm_config.get("model_type")
    if named not in (SUPPORTED_LLM, InternLM2Config.model_type):
        raise ValueError(
            f"this checkpoint's language model is {named}, which is not supported; supported are the InternVL2 and "
            f"InternVL 1.5 checkpoints whose language model is {SUPPORTED_LLM} (InternVL2-2B, InternVL2-8B, "
            "InternVL2-26B, Mini-InternVL-Chat-2B-V1-5, InternVL-Chat-V1-5)"
        )
