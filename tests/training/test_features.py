"""What the vision tower sees, kept in a file; and how much is recomputed in how much memory."""

from __future__ import annotations

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
from training.xtuner.activation_checkpointing import fitting
from training.xtuner.encoding import Sight
from training.xtuner.vision_cache import Features, write

SIGHT = Sight.of(CHECKPOINT)


def written(folder: Path, names: list[str], room: float = 1e9) -> int:
    """Write the features of pictures of different shapes; how many were."""
    for number, name in enumerate(names):
        (folder / name).write_bytes(photo(["red", "blue", "green"][number % 3], (150 + 90 * number, 150)))
    return write(
        folder / "kept" / "0.bin", base=CHECKPOINT, images=folder, pictures=names, sight=SIGHT, room=room, threads=2
    )


def test_kept_features_are_the_towers(tmp_path: Path) -> None:
    """Behind the projector they are what the whole model makes of the same tiles, picture by picture and together."""
    names = ["a.jpg", "b.jpg", "c.jpg"]
    assert written(tmp_path, names) == 3
    features, model = Features(tmp_path / "kept"), load_model(CHECKPOINT, dtype=torch.float32)
    with torch.inference_mode():
        for asked in (["a.jpg"], ["c.jpg"], ["c.jpg", "a.jpg", "b.jpg"]):
            kept = features.of(asked)
            assert kept is not None and kept.shape[1:] == (SIGHT.tokens, SIGHT.width)
            tiles = torch.cat([SIGHT.look(tmp_path / name) for name in asked])
            torch.testing.assert_close(model.mlp1(kept), model.extract_feature(tiles), rtol=1e-4, atol=1e-4)


class _Each(Dataset[Tensor]):
    """The features of each picture."""

    def __init__(self, features: Features, names: list[str]) -> None:
        self._features = features
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> Tensor:
        kept = self._features.of([self._names[place]])
        assert kept is not None
        return kept


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_features_of_unlike_pictures_come_out_of_a_loaders_process(tmp_path: Path) -> None:
    """A batch of pictures with different numbers of tiles, which cannot be stacked, arrives from another process."""
    names = ["a.jpg", "b.jpg", "c.jpg"]
    written(tmp_path, names)
    each = _Each(Features(tmp_path / "kept"), names)
    assert len({len(each[place]) for place in range(3)}) > 1, "they differ"
    # What is lost on the way never comes; the loader says so after a minute.
    (batch,) = DataLoader(each, batch_size=3, num_workers=1, collate_fn=list, timeout=60)
    for place, found in enumerate(batch):
        torch.testing.assert_close(found, each[place], rtol=0, atol=0)


def test_a_picture_that_is_not_kept_is_not_made_up(tmp_path: Path) -> None:
    """A sample with one picture that did not fit has no features: it is computed from its tiles instead."""
    names = [f"{number}.jpg" for number in range(4)]
    full = written(tmp_path, names) and (tmp_path / "kept" / "0.bin").stat().st_size
    fitted = written(tmp_path, names, room=0.6 * full)
    assert 0 < fitted < 4
    features = Features(tmp_path / "kept")
    assert features.of(names[:fitted]) is not None
    assert features.of([names[0], names[-1]]) is None
    assert (tmp_path / "kept" / "0.bin").stat().st_size <= 0.6 * full


def test_a_broken_picture_leaves_no_file_to_read(tmp_path: Path) -> None:
    """What was written before the picture that cannot be opened is not taken for the whole."""
    written(tmp_path, ["a.jpg"])
    (tmp_path / "b.jpg").write_bytes(photo()[:300])
    with pytest.raises(PictureError):
        write(
            tmp_path / "kept" / "0.bin",
            base=CHECKPOINT,
            images=tmp_path,
            pictures=["a.jpg", "b.jpg"],
            sight=SIGHT,
            room=1e9,
            threads=1,
        )
    assert Features(tmp_path / "kept").of(["a.jpg"]) is None


def test_the_less_memory_the_more_is_recomputed() -> None:
    """With much room nothing is, with little everything; in between each layer's worth of memory spares one."""
    config = SimpleNamespace(num_hidden_layers=24, hidden_size=2048, intermediate_size=8192)
    counts = [fitting(config, 13_600, gigabytes * 1e9) for gigabytes in range(60)]
    assert counts[0] == 24 and counts[-1] == 0
    assert all(0 <= before - after <= 1 for before, after in pairwise(counts))
    assert fitting(config, 13_600 // 4, 15e9) < fitting(config, 13_600, 15e9)
