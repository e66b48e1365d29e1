"""The configuration of an InternVL checkpoint: vision tower, language model and their combination.

The classes use the field names of the official `config.json` files (InternVL 1.5 to 3.5) and keep unused
fields. This file is copied into checkpoints as their configuration code, so it imports only
transformers.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PretrainedConfig


class _Fields(PretrainedConfig):
    """Base class that turns annotated fields into constructor arguments, with class attributes as defaults."""

    def __init__(self, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name, getattr(type(self), name)) for name in type(self).__annotations__}
        super().__init__(**kwargs)
        for name, value in own.items():
            setattr(self, name, value)


class InternVisionConfig(_Fields):
    """The configuration of InternViT, the vision tower.

    The value of `norm_type` is "layer_norm" (300M) or "rms_norm" (6B). `patch_size` and `image_size` are in
    pixels; `hidden_size` and `intermediate_size` are numbers of features.
    """

    model_type = "intern_vit_6b"

    num_channels: int = 3
    patch_size: int = 14
    image_size: int = 224
    qkv_bias: bool = False
    hidden_size: int = 3200
    num_attention_heads: int = 25
    intermediate_size: int = 12800
    qk_normalization: bool = True
    num_hidden_layers: int = 48
    hidden_act: str = "gelu"
    norm_type: str = "rms_norm"
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path_rate: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 0.1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.norm_type not in ("layer_norm", "rms_norm"):
            raise ValueError(f'vision norm_type must be "layer_norm" or "rms_norm", not {self.norm_type!r}')


class InternLM2Config(_Fields):
    """The configuration of InternLM2, the language model.

    The value of `rope_scaling` is None or {"type": "linear" | "dynamic", "factor": at least 1}.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - an annotation would make it a field

    vocab_size: int = 103168
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: Any = None  # by default, num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False
    bias: bool = True
    rope_theta: float = 10000
    rope_scaling: dict[str, Any] | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.rope_scaling is not None:
            kind, factor = self.rope_scaling.get("type"), self.rope_scaling.get("factor")
            if kind not in ("linear", "dynamic") or not isinstance(factor, int | float) or factor < 1:
                raise ValueError(
                    f"rope_scaling needs a type (linear or dynamic) and a factor ≥ 1, not {self.rope_scaling}"
                )


LANGUAGE_MODELS = ("InternLM2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM")
"""The supported language models, by the class name in a checkpoint's config.json. All but the first are transformers'
own, and are looked up only when needed, because older versions of transformers lack some."""


class InternVLChatConfig(_Fields):
    """The configuration of an InternVL model.

    Args:
        vision_config: A dictionary or a configuration.
        llm_config: A dictionary or a configuration.
        force_image_size: The side length of a tile in pixels.
        downsample_ratio: The scale factor of the pixel shuffle, by default 0.5.
        ps_version: The version of the pixel shuffle.
        min_dynamic_patch: The minimum number of tiles per picture.
        max_dynamic_patch: The maximum number of tiles per picture, not counting the thumbnail.

    Raises:
        ValueError: The language model is not in `LANGUAGE_MODELS`.
    """

    model_type = "internvl_chat"
    is_composition = True
    sub_configs = {"vision_config": InternVisionConfig}  # noqa: RUF012 - as above

    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    pad2square: bool = False
    select_layer: int = -1
    force_image_size: int | None = None
    downsample_ratio: float = 0.5
    template: str | None = None
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    ps_version: str = "v1"
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6

    def __init__(
        self,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "tie_word_embeddings": False})
        if vision_config is None:
            vision_config = InternVisionConfig(architectures=["InternVisionModel"])
        elif isinstance(vision_config, dict):
            vision_config = InternVisionConfig(**vision_config)
        if llm_config is None:
            llm_config = InternLM2Config(architectures=["InternLM2ForCausalLM"])
        elif isinstance(llm_config, dict):
            llm_config = _language_config(llm_config)
        self.vision_config: InternVisionConfig = vision_config
        self.llm_config: Any = llm_config
        self.hidden_size = llm_config.hidden_size
        if llm_config.model_type != "qwen3":
            # The official code always unties the output layer; only that of InternVL3.5 follows the configuration.
            llm_config.tie_word_embeddings = False
        if self.ps_version not in ("v1", "v2"):
            raise ValueError(f'ps_version must be "v1" or "v2", not {self.ps_version!r}')

    @property
    def short_length(self) -> int | None:
        """The number of positions above which Phi-3 uses its long rotary factors, or None if there is only one set."""
        scaled = self.llm_config.model_type == "phi3" and self.llm_config.rope_scaling
        return self.llm_config.original_max_position_embeddings if scaled else None


def _language_config(fields: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration of a language model, given its fields in a checkpoint's config.json.

    Attention is always PyTorch's scaled_dot_product_attention. The official files request "flash_attention_2",
    which needs another package.

    Raises:
        ValueError: The language model is not in `LANGUAGE_MODELS`, or transformers cannot compute its position
            embedding.
    """
    named = (fields.get("architectures") or [None])[0]
    types = {name.removesuffix("ForCausalLM").lower(): name for name in LANGUAGE_MODELS}
    architecture = named or types.get(str(fields.get("model_type")))
    if architecture not in LANGUAGE_MODELS:
        raise ValueError(
            f"this checkpoint's language model is {named or fields.get('model_type')}, which is not supported; "
            f"the supported ones are {', '.join(LANGUAGE_MODELS)}"
        )
    kind: type[PretrainedConfig] = InternLM2Config
    if architecture != "InternLM2ForCausalLM":
        kind = getattr(transformers, architecture.removesuffix("ForCausalLM") + "Config")
    own = {name: value for name, value in fields.items() if name not in ("attn_implementation", "architectures")}
    scaling = own.get("rope_scaling")
    if architecture == "Phi3ForCausalLM" and scaling:
        if scaling.get("type") == "yarn":
            raise ValueError('Phi-3 with rope_scaling "yarn" is not supported: transformers would compute "longrope"')
        # transformers renames the type in the dictionary that is passed to it.
        own["rope_scaling"] = dict(scaling)
    return kind(**own, architectures=[architecture])
