"""What of our environment a child process is given: all but our secrets.

The operator's command may write its environment into a log, and an engine needs no secret of ours: children get their
settings as arguments and files, and models from folders. No wall against code that looks for secrets: a process of the
same user may read ours.
"""

from __future__ import annotations

import os
from typing import Final

ENV_PREFIX: Final = "THUMBTUNE_"
"""Begins every variable that is a setting of ours, in upper or lower case."""

_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What huggingface_hub takes as an account's token; only `thumbtune fetch` needs it."""


def for_children() -> dict[str, str]:
    """Our environment without our settings, some of which are secret, and without tokens of model hubs."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(ENV_PREFIX) and name not in _TOKENS
    }
