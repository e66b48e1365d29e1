"""The division of GPU memory on common cards, and the errors for models that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_checkpoint import SIZES, configuration
from inference.engines.lmdeploy.kv_budget import (
    BLOCK_TOKENS,
    ModelMemory,
    NoRoom,
    default_blocks,
    prefill_tokens,
    share_of_free,
    working_bytes,
)
from inference.internvl2.checkpoint import write_surroundings
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer

FULL = ModelMemory(weights=4_411_000_000, token=98_304)
"""InternVL2-2B in bfloat16."""


def blocks(total: float, engines: int, memory: ModelMemory = FULL) -> int:
    return default_blocks(memory, int(total), engines=engines, prefill=prefill_tokens(int(total)))


def test_memory_of_the_full_size(tmp_path: Path) -> None:
    """InternVL2-2B's KV cache takes 96 KiB per token; with 8 bits, half that plus the quantization scales.

    The memory for the weights is the size of their files.
    """
    import torch

    write_surroundings(configuration(SIZES["2b"], 92553), load_tokenizer(CHECKPOINT), tmp_path, dtype=torch.bfloat16)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    assert ModelMemory.of(tmp_path, 16) == ModelMemory(weights=1000, token=FULL.token)
    eight = ModelMemory.of(tmp_path, 8).token
    assert FULL.token / 2 < eight < 0.55 * FULL.token


def test_common_cards() -> None:
    """An 80 GB card fits two engines with 80 chats each, and a 24 GB card two with a dozen chats each.

    A 12 GB card fits only one engine.
    """
    chat = 3600 / BLOCK_TOKENS
    assert blocks(85e9, 2) > 80 * chat
    assert 8 * chat < blocks(25e9, 2) < 30 * chat
    assert blocks(12.6e9, 1) > 8 * chat
    with pytest.raises(NoRoom, match=r'swap = "cold".*kv_bits'):
        blocks(12.6e9, 2)
    with pytest.raises(NoRoom, match="AWQ") as alone:
        blocks(6e9, 1)
    assert "cold" not in str(alone.value)


@pytest.mark.parametrize("total", [12.6e9, 25e9, 48e9, 85e9, 151e9])
@pytest.mark.parametrize("engines", [1, 2])
def test_engines_side_by_side_fit(total: float, engines: int) -> None:
    """The weights, KV blocks and working memory of all engines together stay below the card's memory."""
    try:
        number = blocks(total, engines)
    except NoRoom:
        return
    each = FULL.weights + number * BLOCK_TOKENS * FULL.token + working_bytes(prefill_tokens(int(total)))
    assert engines * each < 0.95 * total
    assert number == 16384 or engines * each > 0.85 * total


def test_share_of_the_free_memory() -> None:
    """`share_of_free` gives the KV blocks the same number of bytes however much memory is free.

    A request for too many blocks raises an error that suggests what to change.
    """
    memory = ModelMemory(weights=4_000_000_000, token=100_000)
    wanted = 1000 * BLOCK_TOKENS * memory.token
    for free in (12_000_000_000, 80_000_000_000):
        assert share_of_free(memory, 1000, free) * (free - memory.weights) == pytest.approx(wanted)
    with pytest.raises(NoRoom, match=r"inference\.lmdeploy\.blocks"):
        share_of_free(memory, 1000, 10_000_000_000)
    with pytest.raises(NoRoom, match=r"0\.0 GB are free"):
        share_of_free(memory, 1000, 3_000_000_000)
