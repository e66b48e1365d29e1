"""Whether a base model can be trained at all, before anything is collected, promised or started. Standard library only.

Looks at the checkpoint's config.json alone. Whether the files are whole is `inference.internvl2.checkpoint_check`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

ARCHITECTURE: Final = "InternVLChatModel"
LANGUAGE_MODEL: Final = "InternLM2ForCausalLM"
QUANTIZED: Final = (
    "{base} has quantized weights, which can only be chatted with: set inference.model to the checkpoint that they "
    "were made from"
)
UNKNOWN: Final = (
    "{base} is {found}, and only an InternVL2 with InternLM2 can be trained: set inference.model to such a checkpoint"
)


def untrainable(base: Path) -> str:
    """Why the checkpoint cannot be trained, with the next step; empty where it can."""
    try:
        config: Any = json.loads((base / "config.json").read_bytes())
        outer = config.get("architectures") or ["a model without a name"]
        inner = (config.get("llm_config") or {}).get("architectures") or [LANGUAGE_MODEL]
    except (OSError, ValueError, AttributeError):
        return UNKNOWN.format(base=base, found="no checkpoint (config.json cannot be read)")
    if config.get("quantization_config"):
        return QUANTIZED.format(base=base)
    if ARCHITECTURE not in outer:
        return UNKNOWN.format(base=base, found=outer[0])
    if LANGUAGE_MODEL not in inner:
        return UNKNOWN.format(base=base, found=f"{outer[0]} with {inner[0]}")
    return ""
