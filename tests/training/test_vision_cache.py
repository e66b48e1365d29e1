"""The vision cache, and the number of layers that are recomputed to save memory."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inference.internvl2.checkpoint import load_model
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import PictureError
from tests.support.lessons import photo
from training.xtuner.activation_checkpointing import fewest_layers
from training.xtuner.encoding import Encoder, load_tiles
from training.xtuner.vision_cache import VisionTower, cached_features, write_features

ENCODER = Encoder(CHECKPOINT)
TILING = ENCODER.tiling


def write(folder: Path, names: list[str], max_bytes: float = 1e9) -> int:
    """Write the features of the pictures `names` in `folder` to its cache and return how many were written."""
    cache, tower = folder / "cache", VisionTower(CHECKPOINT)
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    write_features(cache, tower, names, lambda name: load_tiles(folder / name, TILING), max_bytes=max_bytes, threads=2)
    return len(list(cache.iterdir()))


def used(cache: Path) -> int:
    """Return the total size of the files in `cache` in bytes."""
    return sum(file.stat().st_size for file in cache.iterdir())


def draw_and_write(folder: Path, names: list[str], max_bytes: float = 1e9) -> int:
    """Draw pictures of different shapes, write their features to the cache and return how many were written."""
    for number, name in enumerate(names):
        (folder / name).write_bytes(photo(["red", "blue", "green"][number % 3], (150 + 90 * number, 150)))
    return write(folder, names, max_bytes)


def test_cached_features_are_those_of_the_tower(tmp_path: Path) -> None:
    """Cached features, passed through the projector, equal the whole model's features of the same tiles.

    This holds for one picture and for several together.
    """
    names = ["a.jpg", "b.jpg", "c.jpg"]
    assert draw_and_write(tmp_path, names) == 3
    cache, model = tmp_path / "cache", load_model(CHECKPOINT, dtype=torch.float32)
    with torch.inference_mode():
        for some in (["a.jpg"], ["c.jpg"], ["c.jpg", "a.jpg", "b.jpg"]):
            cached = cached_features(cache, some)
            assert cached is not None and cached.shape[1:] == (TILING.tokens, ENCODER.feature_width)
            tiles = torch.cat([load_tiles(tmp_path / name, TILING) for name in some])
            torch.testing.assert_close(model.mlp1(cached), model.extract_feature(tiles), rtol=1e-4, atol=1e-4)


class _Each(Dataset[Tensor]):
    """A dataset of the cached features of each picture."""

    def __init__(self, cache: Path, names: list[str]) -> None:
        self._cache = cache
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Tensor:
        cached = cached_features(self._cache, [self._names[index]])
        assert cached is not None
        return cached


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_process_sends_features_of_different_shapes(tmp_path: Path) -> None:
    """A data loader's worker process can send a batch of pictures with different numbers of tiles.

    The features of such pictures cannot be stacked.
    """
    names = ["a.jpg", "b.jpg", "c.jpg"]
    draw_and_write(tmp_path, names)
    each = _Each(tmp_path / "cache", names)
    assert len({len(each[index]) for index in range(3)}) > 1, "they differ"
    # A lost batch never arrives; the loader raises after a minute.
    (batch,) = DataLoader(each, batch_size=3, num_workers=1, collate_fn=list, timeout=60)
    for index, found in enumerate(batch):
        torch.testing.assert_close(found, each[index], rtol=0, atol=0)


def test_a_picture_that_is_not_cached_has_no_features(tmp_path: Path) -> None:
    """A sample has no cached features if one of its pictures did not fit in the cache.

    The features of such a sample are computed from its tiles.
    """
    names = [f"{number}.jpg" for number in range(4)]
    cache = tmp_path / "cache"
    full = draw_and_write(tmp_path, names) and used(cache)
    fitted = draw_and_write(tmp_path, names, max_bytes=0.6 * full)
    assert 0 < fitted < 4
    assert cached_features(cache, names[:fitted]) is not None
    assert cached_features(cache, [names[0], names[-1]]) is None
    assert used(cache) <= 0.6 * full


def test_a_broken_picture_has_no_features(tmp_path: Path) -> None:
    """If a picture cannot be opened, the features written before it are not used as a cache."""
    draw_and_write(tmp_path, ["a.jpg"])
    (tmp_path / "b.jpg").write_bytes(photo()[:300])
    with pytest.raises(PictureError):
        write(tmp_path, ["a.jpg", "b.jpg"])
    assert cached_features(tmp_path / "cache", ["a.jpg", "b.jpg"]) is None


def test_less_memory_recomputes_more_layers() -> None:
    """With plenty of free memory, no layer is recomputed; with little, all layers are.

    In between, enough additional memory for one layer means that one layer fewer is recomputed.
    """
    config = SimpleNamespace(model_type="internlm2", num_hidden_layers=24, hidden_size=2048, intermediate_size=8192)
    counts = [fewest_layers(config, 13_600, gigabytes * 1e9) for gigabytes in range(60)]
    assert counts[0] == 24 and counts[-1] == 0
    assert all(0 <= before - after <= 1 for before, after in pairwise(counts))
    assert fewest_layers(config, 13_600 // 4, 15e9) < fewest_layers(config, 13_600, 15e9)
