"""What the doctor says fits on GPUs of common sizes, for the official models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.cli.doctor.findings import Finding
from bot.cli.doctor.gpu_memory import memory_findings
from tests.support.doctoring import settings_in

GB12, GB24, GB80 = 12.9e9, 25.8e9, 85.5e9
COLD = {"swap": "cold"}


@pytest.fixture
def fits(tmp_path: Path, sparse_checkpoint: Callable[[str], Path]) -> Callable[..., dict[str, Finding]]:
    """Return a function that returns what the doctor finds about a model on cards of some sizes, by name."""

    def examined(model: str, *totals: float, **sections: dict[str, Any]) -> dict[str, Finding]:
        served = {"engine": "lmdeploy", "model": str(sparse_checkpoint(model)), **sections.pop("inference", {})}
        settings = settings_in(tmp_path, inference=served, **sections)
        return {each.name: each for each in memory_findings(settings, dict(enumerate(totals)))}

    return examined


def test_a_large_card_fits_everything(fits: Callable[..., dict[str, Finding]]) -> None:
    """On 80 GB, InternVL2-2B answers and trains side by side, and a second engine fits during a swap."""
    found = fits("2b", GB80)
    assert list(found) == ["GPU 0: chat", "GPU 0: swap", "GPU 0: training"]
    assert all(each.ok and not each.cure for each in found.values()), found
    assert "4.4 for weights" in found["GPU 0: chat"].detail
    assert "qlora takes 8.2 GB for 4 pairs" in found["GPU 0: training"].detail


def test_a_small_card_needs_cold_swaps(fits: Callable[..., dict[str, Finding]]) -> None:
    """On 12 GB, one engine fits, two do not, and training fits only while chats wait; the doctor names the settings."""
    found = fits("2b", GB12)
    assert found["GPU 0: chat"].ok
    assert not found["GPU 0: swap"].ok
    assert 'inference.swap = "cold"' in found["GPU 0: swap"].cure
    cold = fits("2b", GB12, inference=COLD)
    assert cold["GPU 0: swap"].ok
    assert "do not fit" in cold["GPU 0: swap"].detail
    assert "would fit" in fits("2b", GB24, inference=COLD)["GPU 0: swap"].detail
    assert not cold["GPU 0: training"].ok
    assert 'training.while_training = "pause"' in cold["GPU 0: training"].cure
    alone = fits("2b", GB12, inference=COLD, training={"while_training": "pause"})
    assert all(each.ok and not each.cure for each in alone.values()), alone


def test_fewer_tiles_take_less(fits: Callable[..., dict[str, Finding]]) -> None:
    """With fewer tiles for a picture, a training needs less; on a card for smaller batches only, it starts anyway."""
    alone = {"while_training": "pause"}
    found = fits("2b", 8.3e9, inference=COLD, training=alone)["GPU 0: training"]
    assert found.ok
    assert "smaller batches" in found.detail
    fewer = fits("2b", 8.3e9, inference={**COLD, "tiles": 6}, training=alone)["GPU 0: training"]
    assert fewer.ok
    assert "smaller batches" not in fewer.detail


def test_the_number_of_blocks_that_leaves_room(fits: Callable[..., dict[str, Finding]]) -> None:
    """With the number of KV blocks that the doctor names, training fits beside the engine."""
    found = fits("2b", GB24, inference=COLD)
    cure = found["GPU 0: training"].cure
    blocks = int(cure.rpartition("= ")[2])
    for number, clear in ((blocks, True), (blocks + 50, False)):
        again = fits("2b", GB24, inference=COLD, **{"inference.lmdeploy": {"blocks": number}})
        assert (not again["GPU 0: training"].cure) is clear


def test_blocks_beyond_the_card(fits: Callable[..., dict[str, Finding]]) -> None:
    """Too many KV blocks for the card are an error that names their setting."""
    found = fits("2b", GB24, **{"inference.lmdeploy": {"blocks": 200_000}})
    assert not found["GPU 0: chat"].ok
    assert "inference.lmdeploy.blocks" in found["GPU 0: chat"].cure


def test_a_model_beyond_the_card(fits: Callable[..., dict[str, Finding]]) -> None:
    """A model that is larger than the card is one error."""
    found = fits("26b", GB24)
    assert list(found) == ["GPU 0: chat"]
    assert not found["GPU 0: chat"].ok
    assert "AWQ" in found["GPU 0: chat"].cure


def test_training_on_cards_of_its_own(fits: Callable[..., dict[str, Finding]]) -> None:
    """Cards that only train have their whole memory for it; fewer weights on each need ZeRO, if not QLoRA."""
    cards, own = (GB80,) * 9, {"gpus": list(range(1, 9))}
    rest = {"inference": {"gpus": [0]}, "training.knobs": {"method": "full", "accumulation": 2}}
    found = fits("26b", *cards, training=own, **rest)
    assert "GPU 0: training" not in found
    assert not found["GPU 1: training"].ok
    assert 'method = "qlora"' in found["GPU 1: training"].cure
    assert "8 such cards" in found["GPU 1: training"].cure
    spread = fits("26b", *cards, training={**own, "deepspeed": 3}, **rest)
    assert all(spread[f"GPU {index}: training"].ok for index in range(1, 9))


def test_an_external_server_and_a_trainer_on_the_processor(fits: Callable[..., dict[str, Finding]]) -> None:
    """Where neither chat nor training uses a GPU, nothing is said."""
    external = {"engine": "external", "endpoint": "http://127.0.0.1:1"}
    assert not fits("2b", GB24, inference=external, training={"device": "cpu"})
    assert list(fits("2b", GB24, inference=external)) == ["GPU 0: training"]


def test_a_card_of_unknown_size(fits: Callable[..., dict[str, Finding]]) -> None:
    """A card whose memory nvidia-smi does not know is left out."""
    assert not fits("2b", float("inf"))
