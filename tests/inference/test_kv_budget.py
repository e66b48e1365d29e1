"""The division of GPU memory on common cards, and the errors for models that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.engines.lmdeploy.kv_budget import (
    BLOCK_TOKENS,
    ModelMemory,
    NoRoom,
    default_blocks,
    prefill_tokens,
    share_of_free,
)

FULL = ModelMemory(weights=4_411_000_000, token=98_304, fixed=1_112_000_000, prefill_token=90_112)
"""InternVL2-2B in bfloat16."""

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEBIBYTE = 2**20


def blocks(total: float, engines: int, memory: ModelMemory = FULL) -> int:
    return default_blocks(memory, int(total), engines=engines, prefill=prefill_tokens(int(total)))


def test_memory_of_the_full_size(sparse_checkpoint: Callable[[str], Path]) -> None:
    """InternVL2-2B's KV cache takes 96 KiB per token; with 8 bits, half that plus the quantization scales.

    The working memory at 8192 and 16384 tokens is the measured one (benchmarks/README.md), and 250 MB for tiling.
    """
    memory = ModelMemory.of(sparse_checkpoint("2b"), 16)
    assert memory.weights == pytest.approx(FULL.weights, rel=0.001)
    assert (memory.token, memory.prefill_token) == (FULL.token, FULL.prefill_token)
    assert memory.fixed == pytest.approx(FULL.fixed, rel=0.001)
    assert memory.work(8192) == pytest.approx(1.85e9, rel=0.01)
    assert memory.work(16384) == pytest.approx(1.85e9 + 8192 * 90_000, rel=0.01)
    eight = ModelMemory.of(sparse_checkpoint("2b"), 8).token
    assert FULL.token / 2 < eight < 0.55 * FULL.token


def test_a_larger_model_needs_more_memory(sparse_checkpoint: Callable[[str], Path]) -> None:
    """The 26B model needs more working memory than the 2B; on two cards, each holds half of its language model."""
    whole, half = (ModelMemory.of(sparse_checkpoint("26b"), 16, cards) for cards in (1, 2))
    assert whole.work(8192) > 1.5 * FULL.work(8192)
    assert half.token == whole.token // 2
    language = 2 * 19_861_000_000
    assert whole.weights - half.weights == pytest.approx(language / 2, rel=0.001), "the vision tower stays whole"


@pytest.mark.parametrize(
    ("total", "engines", "measured"),
    [
        # The memory of the card in use (nvidia-smi) with one engine; on the simulated small cards, minus the part that
        # was occupied. A result file has both in MiB.
        pytest.param(143_771 * MEBIBYTE, 2, lambda: _result("sharing_h200.json")["megabytes_alone"], id="H200"),
        pytest.param(24e9, 2, lambda: _occupied("24 GB"), id="24 GB"),
        pytest.param(12e9, 1, lambda: _occupied('12 GB, swap = "cold"'), id="12 GB"),
    ],
)
def test_computed_and_measured_memory_of_an_engine(total: float, engines: int, measured: Callable[[], int]) -> None:
    """The computed memory of a whole engine with InternVL2-2B is within 5 % of the measured memory."""
    prefill = prefill_tokens(int(total))
    assert FULL.engine(blocks(total, engines), prefill) == pytest.approx(measured() * MEBIBYTE, rel=0.05)


def _result(name: str) -> dict[str, int]:
    found: dict[str, int] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def _occupied(card: str) -> int:
    found = json.loads((RESULTS / "cards_h200.json").read_text(encoding="utf-8"))[card]
    return int(found["megabytes_before"] - found["megabytes_at_the_end"])


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
    each = FULL.engine(number, prefill_tokens(int(total)))
    assert engines * each < 0.95 * total
    assert number == 16384 or engines * each > 0.85 * total


def test_share_of_the_free_memory() -> None:
    """`share_of_free` gives the KV blocks the same number of bytes however much memory is free.

    A request for too many blocks raises an error that suggests what to change.
    """
    memory = ModelMemory(weights=4_000_000_000, token=100_000, fixed=0, prefill_token=0)
    wanted = 1000 * BLOCK_TOKENS * memory.token
    for free in (12_000_000_000, 80_000_000_000):
        assert share_of_free(memory, 1000, free) * (free - memory.weights) == pytest.approx(wanted)
    with pytest.raises(NoRoom, match=r"inference\.lmdeploy\.blocks"):
        share_of_free(memory, 1000, 10_000_000_000)
    with pytest.raises(NoRoom, match=r"0\.0 GB remain"):
        share_of_free(memory, 1000, 3_000_000_000)
