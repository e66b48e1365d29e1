"""The vision tower compared with timm's InternViT, an independent implementation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import RmsNorm
from torch import Tensor

from benchmarks.random_checkpoint import SIZES, configuration
from inference.internvl2.configuration_internvl2 import InternVisionConfig
from inference.internvl2.modeling_intern_vit import InternVisionModel
from tests.golden import internvl2_cases as cases

TOLERANCE = 1e-5
SIDE = 112  # 8 × 8 patches
SPREAD = 0.02  # of the embeddings, so small that the epsilon of a norm, 1e-6, has an effect far above the tolerance
EMBEDDINGS = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
}
SMALL: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "image_size": SIDE}
RMS: dict[str, Any] = {"norm_type": "rms_norm", "qkv_bias": False}


def timm_name(name: str) -> str:
    """Return timm's name for the weight `name` of the official checkpoints."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    inside = name.replace("encoder.layers.", "blocks.")
    return f"{inside}.gamma" if inside.endswith((".ls1", ".ls2")) else inside


def timm_model(**changes: Any) -> Any:
    """Return timm's InternViT-300M with its arguments overridden by `changes`, in evaluation mode."""
    return timm.create_model("vit_intern300m_patch14_448", pretrained=False, **changes).eval()


def normalize_across_heads(model: Any) -> None:
    """Replace timm's per-head query and key norms with norms across all heads, as in InternViT-6B."""
    for block in model.blocks:
        for name in ("q_norm", "k_norm"):
            norm = RmsNorm(model.embed_dim)
            norm.register_forward_pre_hook(lambda _, given: (given[0].transpose(1, 2).flatten(2),))
            norm.register_forward_hook(
                lambda _, given, made, heads=block.attn.num_heads: made.unflatten(-1, (heads, -1)).transpose(1, 2)
            )
            setattr(block.attn, name, norm)


def error(config: InternVisionConfig, theirs: Any) -> float:
    """Return the largest relative difference between our features and timm's across all layers.

    Each difference is relative to timm's largest value after the layer.
    """
    ours = InternVisionModel(config).eval()
    state = {
        name: value * SPREAD if name.startswith("embeddings.") else value
        for name, value in cases.weights(ours.state_dict()).items()
    }
    ours.load_state_dict(state)
    theirs.load_state_dict({timm_name(name): value for name, value in state.items()})
    tiles = cases.pixel_values(SIDE)
    with torch.no_grad():
        states: tuple[Tensor, ...] = ours(tiles, output_hidden_states=True).hidden_states[1:]
        expected = theirs.forward_intermediates(
            tiles, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
        )
        last = theirs.forward_features(tiles)
    assert len(states) == len(expected) == config.num_hidden_layers
    pairs = [(state, torch.cat([first, rest], dim=1)) for state, (rest, first) in zip(states, expected, strict=True)]
    pairs.append((states[-1], last))
    assert all(state.shape == reference.shape for state, reference in pairs)
    return max(float((state - reference).abs().max() / reference.abs().max()) for state, reference in pairs)


def test_the_whole_tower_has_timm_s_weights() -> None:
    """All 24 layers of InternVL2-2B's vision tower have the weight names and shapes of timm's model."""
    with torch.device("meta"):
        ours = InternVisionModel(configuration(SIZES["2b"], 1).vision_config).state_dict()
        theirs = timm_model().state_dict()
    assert {timm_name(name): value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


def test_features_equal_timm_s_at_full_width() -> None:
    """Features of one full-width layer of InternVL2-2B's vision tower equal timm's.

    The number of heads and the constants are timm's own.
    """
    size = replace(SIZES["2b"], vision_layers=1, image_size=SIDE)
    assert error(configuration(size, 1).vision_config, timm_model(depth=1, img_size=SIDE)) < TOLERANCE


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        pytest.param({"norm_type": "layer_norm", "qkv_bias": True}, {}, id="layer norm"),
        pytest.param({"norm_type": "layer_norm", "qkv_bias": False}, {"qkv_bias": False}, id="layer norm, no bias"),
        pytest.param(RMS, {"norm_layer": "rmsnorm", "qkv_bias": False}, id="rms norm"),
    ],
)
@pytest.mark.parametrize("heads", [1, 6])
def test_features_equal_timm_s(heads: int, fields: dict[str, Any], changes: dict[str, Any]) -> None:
    """Features of every token after every layer equal timm's.

    The cases cover both norms, and layer norm with and without biases for q, k and v.
    """
    config = InternVisionConfig(**SMALL, **fields, num_attention_heads=heads, qk_normalization=False)
    theirs = timm_model(depth=3, img_size=SIDE, embed_dim=96, num_heads=heads, **changes)
    assert error(config, theirs) < TOLERANCE


@pytest.mark.parametrize("heads", [1, 6])
def test_features_with_normalized_queries_and_keys_equal_timm_s(heads: int) -> None:
    """Features with normalized queries and keys, as in InternViT-6B, equal timm's.

    With one head, timm's norm is used unchanged; with several heads, it is replaced by one across all heads.
    """
    config = InternVisionConfig(**SMALL, **RMS, num_attention_heads=heads, qk_normalization=True)
    theirs = timm_model(
        depth=3, img_size=SIDE, embed_dim=96, num_heads=heads, norm_layer="rmsnorm", qkv_bias=False, qk_norm=True
    )
    if heads > 1:
        normalize_across_heads(theirs)
    assert error(config, theirs) < TOLERANCE
