"""Training and evaluation of internvl2-tiny, the stand-in model that ships with the package."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

WORDINGS: Final[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("wordings.toml").read_text("utf-8"))
"""The texts that the model is trained on; wordings.toml explains them."""
