"""Small InternVL2 models with seeded weights and inputs, for comparing our code with the official code.

The module depends on neither implementation: `weights` fills any state dictionary by parameter name.
NumPy's policy (NEP 19) freezes the random streams of `RandomState`, so the numbers are the same
everywhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

VOCABULARY = 61
PICTURE = 60
TILES = 3
LENGTH = 40

_VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "image_size": 56,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
}
_LLM: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bias": False,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}
_JOINED: dict[str, Any] = {
    "vision_config": _VISION,
    "llm_config": _LLM,
    "force_image_size": 56,
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internlm2-chat",
}

CASES: dict[str, dict[str, Any]] = {
    # The shape of InternVL2-2B.
    "internvl2": _JOINED,
    # InternViT-6B: RMS norms, normalized queries and keys, no bias; the first pixel shuffle; LLM with bias, no groups.
    "vit_6b_style": {
        **_JOINED,
        "vision_config": {**_VISION, "norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
        "llm_config": {**_LLM, "num_key_value_heads": 4, "bias": True, "rope_scaling": None, "rope_theta": 10000},
        "ps_version": "v1",
    },
    # One key/value head, linear scaling, features of an earlier layer, tiles of another size than the position grid.
    "resampled": {
        **_JOINED,
        "vision_config": {**_VISION, "image_size": 84},
        "llm_config": {**_LLM, "num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 3.0}},
        "select_layer": -2,
    },
    # Twice the model's positions: the dynamic base changes with every token.
    "beyond_positions": {**_JOINED, "llm_config": {**_LLM, "max_position_embeddings": LENGTH // 2}},
}


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return random values for every entry of a state dictionary.

    Each entry is seeded by its name and scaled so that it has an effect on the model's output.
    """
    filled = {}
    for name, tensor in state.items():
        value = _normal(name, tuple(tensor.shape))
        if "norm" in name.rsplit(".", 2)[-2] or name.startswith("mlp1.0") or name.split(".")[-1] in ("ls1", "ls2"):
            value = 1.0 + 0.3 * value if name.endswith(("weight", "ls1", "ls2")) else 0.3 * value
        elif tensor.dim() >= 2 and not name.endswith(("embedding", "tok_embeddings.weight")):
            value = value / np.sqrt(np.prod(tensor.shape[1:])).astype(np.float32)
        filled[name] = torch.from_numpy(value)
    return filled


def pixel_values(side: int) -> torch.Tensor:
    """Return the pixel values of random tiles, with shape [TILES, 3, side, side]."""
    return torch.from_numpy(_normal("pixels", (TILES, 3, side, side)))


def batch(tokens_per_tile: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token IDs, attention mask, positions and labels, each with shape [2, LENGTH].

    The first row has two tiles; the second row is shorter, has one tile and is padded on the left. Only the
    last ten positions have labels.
    """
    ids = np.random.RandomState(7).randint(3, PICTURE, (2, LENGTH))
    mask = np.ones((2, LENGTH), dtype=np.int64)
    mask[1, : LENGTH // 4] = 0
    ids[0, 2 : 2 + 2 * tokens_per_tile] = PICTURE
    ids[1, LENGTH // 4 + 2 : LENGTH // 4 + 2 + tokens_per_tile] = PICTURE
    positions = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)
    labels = np.where(np.arange(LENGTH) >= LENGTH - 10, ids, -100)
    return tuple(torch.from_numpy(part) for part in (ids, mask, positions, labels))  # type: ignore[return-value]
