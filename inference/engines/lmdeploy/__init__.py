"""The lmdeploy engine: lmdeploy's own server with some of its internals replaced."""

from typing import Final

SUPPORTED_VERSION: Final = "0.18.0"
"""The one lmdeploy release whose internals the engine replaces; any other is refused."""
