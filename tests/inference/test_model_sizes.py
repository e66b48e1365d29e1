"""The sizes that are read from config.json and weight headers agree with the model's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.internvl2.checkpoint import load_model
from inference.internvl2.model_sizes import count, read_sizes, stored_bytes
from inference.internvl2.tiny import CHECKPOINT


def test_parts_are_those_of_the_loaded_model() -> None:
    """Each part has as many weights as that part of the loaded model, and together they are as large as the files."""
    model, sizes = load_model(CHECKPOINT), read_sizes(CHECKPOINT)
    for part, weights in (
        (model.vision_model, sizes.vision_weights),
        (model.mlp1, sizes.projector_weights),
        (model.language_model, sizes.language_weights),
    ):
        assert count(weights) == sum(each.numel() for each in part.parameters())
    parts = (sizes.vision_weights, sizes.projector_weights, sizes.language_weights)
    files = sum(file.stat().st_size for file in CHECKPOINT.glob("*.safetensors"))
    assert 0 < files - sum(map(stored_bytes, parts)) < 100_000, "the rest is the header"
    assert sizes.tile_tokens == model.num_image_token
    assert sizes.embeddings.count == sum(each.numel() for each in model.get_input_embeddings().parameters())


@pytest.mark.parametrize(
    ("size", "vision", "language"),
    [("2b", 0.304, 1.889), ("8b", 0.304, 7.738), ("26b", 5.536, 19.861), ("qwen3-4b", 0.304, 4.02)],
)
def test_official_sizes(sparse_checkpoint: Callable[[str], Path], size: str, vision: float, language: float) -> None:
    """The computed numbers of weights of the official models are the published ones, in billions."""
    sizes = read_sizes(sparse_checkpoint(size))
    assert count(sizes.vision_weights) / 1e9 == pytest.approx(vision, abs=0.001)
    assert count(sizes.language_weights) / 1e9 == pytest.approx(language, rel=0.005)
    assert sizes.tied == (size == "qwen3-4b")


def test_the_tokens_of_a_large_picture(sparse_checkpoint: Callable[[str], Path]) -> None:
    """A picture of twelve tiles and a thumbnail takes 13 × 256 tokens."""
    sizes = read_sizes(sparse_checkpoint("2b"))
    assert (sizes.most_tiles, sizes.tile_tokens) == (13, 256)


def test_no_checkpoint(tmp_path: Path) -> None:
    """A directory without weights or with a damaged header is refused."""
    with pytest.raises(FileNotFoundError):
        read_sizes(tmp_path)
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    with pytest.raises(ValueError, match="no language model weights"):
        read_sizes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"{nono")
    with pytest.raises(ValueError, match="Expecting"):
        read_sizes(tmp_path)
