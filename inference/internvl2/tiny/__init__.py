"""internvl2-tiny: a trained stand-in for InternVL2-2B, small enough to ship, that knows coloured shapes.

`CHECKPOINT` is its directory in the official layout. The other modules draw what it knows, ask about it and judge its
answers. `tools.tiny` trains and examines it.
"""

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""Directory of the shipped checkpoint. Its model code is symbolic links to `inference.internvl2`."""
