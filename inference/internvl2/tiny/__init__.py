"""The internvl2-tiny model, a small stand-in for InternVL2-2B, trained to recognize coloured shapes.

The checkpoint is small enough to ship with the package; `CHECKPOINT` is its directory in the official
layout. The other modules draw pictures for the model, ask questions about them and judge its answers.
`tools.tiny` trains and evaluates the model.
"""

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""Directory of the shipped checkpoint. Its code files are symbolic links to those of `inference.internvl2`."""
