"""internvl2-tiny: a trained stand-in for InternVL2-2B, small enough to ship, that names, counts and chats.

`CHECKPOINT` is its directory in the official layout. `shapes` draws what it knows, `questions` and `answers`
hold the words, `manner` judges an answer; these need Pillow at most. `train` makes the checkpoint and
`evaluate` measures it; they need torch.
"""

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""Directory of the shipped checkpoint."""
