"""How all nodes change their model: one after the other, and back if one fails.

Knows the order of nodes. How one place exchanges its engine is bluegreen.py's, how chats are warmed moves.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from inference.messages import EngineUnavailable
from inference.moves import Moves
from inference.nodes import Node


class Rolling:
    """Swaps `nodes`, one at a time."""

    def __init__(self, nodes: Sequence[Node], moves: Moves) -> None:
        self._nodes = nodes
        self._moves = moves

    async def swap(self, model_id: str, model_dir: Path) -> bool:
        """Give every node that is not drained another model; False if all had it."""
        async with self._moves.alone():
            if not await asyncio.to_thread(model_dir.is_dir):
                raise EngineUnavailable(f"{model_id} cannot go live: there is no directory {model_dir}.")
            swapped = False
            for node in self._nodes:
                swapped |= await node.slots.swap(model_id, model_dir, partial(self._moves.welcome, node))
            return swapped
