"""Check that a run can start: the trainer is installed and can train the base model.

Only the checkpoint's config.json and the headers of its weight files are read;
`inference.internvl2.checkpoint_check` checks that the files are complete. This module needs only the
standard library.
"""

from __future__ import annotations

import importlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from inference.internvl2.families import LANGUAGE_MODELS, UnknownFamily, family_of, language_model_of
from inference.internvl2.model_sizes import read_sizes
from storage.translatable_reason import Reason

ARCHITECTURE: Final = "InternVLChatModel"


def trainer_missing() -> Reason | None:
    """Return what to do if the trainer is not installed in this environment, or None if it is installed.

    `make install` installs XTuner last, so if XTuner's metadata is present, everything that XTuner needs is
    installed too.
    """
    importlib.invalidate_caches()
    try:
        version("xtuner")
    except PackageNotFoundError:
        return Reason(
            'The trainer isn\'t installed yet. If you started me with "make demo", it is being installed in the '
            'background, so try again in a minute or two. If not, run "make install".'
        )
    return None


def untrainable(base: Path) -> Reason | None:
    """Return why the checkpoint cannot be trained and what to do next, or None if it can be trained."""
    try:
        config: Any = json.loads((base / "config.json").read_bytes())
        outer = config.get("architectures") or ["a model without a name"]
        inner = language_model_of(config)
    except (OSError, ValueError, AttributeError):
        return _unknown(base, "no checkpoint (config.json cannot be read)")
    if config.get("quantization_config"):
        return Reason(
            "{base} has quantized weights, which can't be trained: set inference.model to the original checkpoint",
            base=str(base),
        )
    if ARCHITECTURE not in outer:
        return _unknown(base, outer[0])
    if inner not in LANGUAGE_MODELS:
        return _unknown(base, f"{outer[0]} with {inner}")
    try:
        family_of(config)
    except UnknownFamily:
        return _unknown(base, f"{outer[0]} with the chat template {config.get('template')}")
    try:
        read_sizes(base)
    except (OSError, ValueError, KeyError):
        return _unknown(base, "no checkpoint (its weights cannot be read)")
    return None


def _unknown(base: Path, found: str) -> Reason:
    return Reason(
        "{base} is {found}, and only an InternVL with InternLM2, Qwen2, Qwen3 or Phi-3 can be trained: set "
        "inference.model to such a checkpoint",
        base=str(base),
        found=found,
    )
