"""The language models that TurboMind serves. This module imports neither torch nor lmdeploy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from inference.internvl2.families import language_model_of

LANGUAGE_MODELS: Final = ("InternLM2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The supported language models in lmdeploy 0.18.0's list (lmdeploy/turbomind/supported_models.py, SUPPORTED_ARCHS)."""

CURE: Final = (
    'set inference.engine = "cpu", or run lmdeploy\'s PyTorch engine yourself (lmdeploy serve api_server DIR --backend '
    "pytorch --trust-remote-code --session-len 4096) and name it in inference.endpoint"
)
"""The advice for any other language model.

4096 is Phi-3's `original_max_position_embeddings`. Beyond it, lmdeploy's PyTorch engine rotates the positions of every
chat in a batch by the factors for the longest one, which do not match the chats' cached keys (lmdeploy 0.18.0,
lmdeploy/pytorch/backends/default/rotary_embedding.py, LongRoPEScalingRotaryEmbeddingImpl).
"""


def unsupported(directory: Path) -> str:
    """Return why TurboMind cannot serve the checkpoint in `directory`, or an empty string if it can.

    Raises:
        OSError, ValueError: config.json cannot be read.
    """
    name = language_model_of(json.loads((directory / "config.json").read_bytes()))
    return "" if name in LANGUAGE_MODELS else f"TurboMind, lmdeploy's engine, does not support {name}"
