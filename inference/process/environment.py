"""The environment of child processes: the bot's own environment without its secrets, and with huge pages for torch.

A command configured by the operator may log its environment, and engines and training runs need no
secrets. Removing the secrets does not protect against malicious code: any process of the same user can
read the bot's memory and environment.
"""

from __future__ import annotations

import os
from typing import Final

ENV_PREFIX: Final = "THUMBTUNE_"
"""Prefix of the environment variables that hold settings, in upper or lower case."""

_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The account tokens of huggingface_hub; only `thumbtune fetch` needs them."""


_HUGE_PAGES: Final = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Makes torch ask Linux for huge pages for large tensors in main memory (c10/core/impl/alloc_cpu.cpp), because with
pages of 4 kB a large new tensor causes thousands of page faults. Operators may set it to 0."""


def for_children() -> dict[str, str]:
    """Return the environment for a child process, without thumbtune's settings or access tokens for model hubs."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(ENV_PREFIX) and name not in _TOKENS
    }
    return _HUGE_PAGES | own
