"""The environment of child processes: the bot's own without its secrets.

An operator's command may write its environment into a log, and engines and trainings need no secrets. This does not
protect against malicious code: a process of the same user can read the bot's memory and environment.
"""

from __future__ import annotations

import os
from typing import Final

ENV_PREFIX: Final = "THUMBTUNE_"
"""Prefix of the variables that are settings, in upper or lower case."""

_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The account tokens of huggingface_hub; only `thumbtune fetch` needs them."""


def for_children() -> dict[str, str]:
    """Return the environment without thumbtune's settings and the tokens of model hubs."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(ENV_PREFIX) and name not in _TOKENS
    }
