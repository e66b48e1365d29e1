"""Which checkpoints a training job resumes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from training.job import Job
from training.run_folder import FEATURES, STATE
from training.xtuner.resume import adopt_checkpoints, latest_checkpoint, prepare_state, remove_state


def job(folder: Path, rows: str = "[1, 2]", **changes: Any) -> Job:
    """Return a job in `folder` that trains on `rows`."""
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(rows)
    made = Job(folder.name, "base", str(folder / "train.json"), "images", work=str(folder), system="system")
    return replace(made, **changes)


def save(folder: Path, number: int) -> Path:
    """Write checkpoint `number` as a zip archive, as torch does, and return its path."""
    file = folder / STATE / f"iter_{number}.pth"
    with ZipFile(file, "w") as archive:
        archive.writestr("data/0", b"weights" * 100)
    return file


def interrupted(folder: Path, **changes: Any) -> Job:
    """Return a job that was interrupted after it had saved a checkpoint at batch 40."""
    made = job(folder, **changes)
    prepare_state(made)
    save(folder, 40)
    (folder / STATE / "last_checkpoint").write_text(str(folder / STATE / "iter_40.pth"))
    (folder / STATE / "vis_data").mkdir()
    return made


def test_the_same_job_resumes(tmp_path: Path) -> None:
    """A job resumes from its checkpoint even with smaller batches or different numbers of threads or processes."""
    made = interrupted(tmp_path / "1")
    for same in (made, replace(made, split=2), replace(made, threads=3, processes=2)):
        prepare_state(same)
        assert latest_checkpoint(same) == tmp_path / "1" / STATE / "iter_40.pth"


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-5}, {"base": "other"}, {"system": "other"}, {"seed": 7}, {"deepspeed": 1}]
)
def test_another_training_does_not_resume(tmp_path: Path, change: dict[str, Any]) -> None:
    """A job with a changed base, system prompt or hyperparameter does not resume.

    The old checkpoints are removed from its folder.
    """
    other = replace(interrupted(tmp_path / "1"), **change)
    assert latest_checkpoint(other) is None
    prepare_state(other)
    assert [each.name for each in (tmp_path / "1" / STATE).iterdir()] == ["training.sha256"]


def test_other_weights_at_the_same_path_do_not_resume(tmp_path: Path) -> None:
    """A job does not resume if the base's weights were replaced at the same path, even behind a symbolic link."""
    weights, base = tmp_path / "weights", tmp_path / "base"
    weights.write_bytes(b"weights")
    base.mkdir()
    (base / "model.safetensors").symlink_to(weights)
    made = interrupted(tmp_path / "1", base=str(base))
    assert latest_checkpoint(made) is not None
    weights.write_bytes(b"other weights")
    assert latest_checkpoint(made) is None


def test_other_rows_do_not_resume(tmp_path: Path) -> None:
    """A job does not resume if a training row was added or erased."""
    made = interrupted(tmp_path / "1")
    Path(made.data).write_text("[1]")
    assert latest_checkpoint(made) is None


def test_a_missing_checkpoint_is_ignored(tmp_path: Path) -> None:
    """If the checkpoint named in `last_checkpoint` is missing, training starts from the beginning."""
    made = interrupted(tmp_path / "1")
    (tmp_path / "1" / STATE / "iter_40.pth").unlink()
    assert latest_checkpoint(made) is None


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    """After a power failure, an incomplete checkpoint file is ignored and the last complete one is used.

    An empty `last_checkpoint` file is also ignored.
    """
    made = interrupted(tmp_path / "1")
    half = save(tmp_path / "1", 80)
    half.write_bytes(half.read_bytes()[:300])
    (tmp_path / "1" / STATE / "last_checkpoint").write_text("")
    assert latest_checkpoint(made) == tmp_path / "1" / STATE / "iter_40.pth"
    (tmp_path / "1" / STATE / "iter_40.pth").unlink()
    assert latest_checkpoint(made) is None
    assert not adopt_checkpoints(job(tmp_path / "2"), [tmp_path / "1"])


def test_a_damaged_checkpoint_is_removed(tmp_path: Path) -> None:
    """A damaged checkpoint is removed, and training resumes from the one before it, if there is one.

    The damaged checkpoint would make every attempt fail.
    """
    made = interrupted(tmp_path / "1")
    newest = save(tmp_path / "1", 80)
    for damaged in (newest, tmp_path / "1" / STATE / "iter_40.pth"):
        damaged.write_bytes(damaged.read_bytes().replace(b"weights", b"WEIGHTS", 1))
        prepare_state(made)
        assert not damaged.exists()
    assert latest_checkpoint(made) is None
    assert [each.name for each in (tmp_path / "1" / STATE).iterdir()] == ["training.sha256"]


def test_a_new_run_adopts_the_checkpoints_of_the_same_training(tmp_path: Path) -> None:
    """A new run takes over the checkpoints of the newest earlier run with the same data and settings.

    The checkpoints of all other runs are removed; their logs stay.
    """
    for number, rows in (("1", "[1, 2]"), ("2", "[1, 2]"), ("3", "[1]")):
        interrupted(tmp_path / number, rows=rows)
    new = job(tmp_path / "4")
    assert adopt_checkpoints(new, [tmp_path / each for each in ("3", "2", "1")])
    assert latest_checkpoint(new) == tmp_path / "4" / STATE / "iter_40.pth"
    assert not (tmp_path / "2" / STATE).exists()
    for other in ("1", "3"):
        assert [each.name for each in sorted((tmp_path / other / STATE).iterdir())] == ["training.sha256", "vis_data"]


def test_nothing_is_adopted_from_other_trainings(tmp_path: Path) -> None:
    """A run starts from the beginning if there is no earlier run or the earlier runs used other data."""
    new = job(tmp_path / "2")
    assert not adopt_checkpoints(new, [])
    interrupted(tmp_path / "1", rows="[3]")
    assert not adopt_checkpoints(new, [tmp_path / "1"])
    assert latest_checkpoint(new) is None


def test_a_folder_is_a_checkpoint_too(tmp_path: Path) -> None:
    """A DeepSpeed checkpoint, which is a folder, is used only if `last_checkpoint` names it."""
    made = interrupted(tmp_path / "1")
    folder = tmp_path / "1" / STATE / "iter_80.pth"
    folder.mkdir()
    (folder / "part").write_bytes(b"weights")
    assert latest_checkpoint(made) == tmp_path / "1" / STATE / "iter_40.pth"
    (tmp_path / "1" / STATE / "last_checkpoint").write_text("/elsewhere/iter_80.pth\n")
    prepare_state(made)
    assert latest_checkpoint(made) == folder
    remove_state(tmp_path / "1")
    assert not folder.exists()


def test_checkpoints_of_epochs_are_removed_too(tmp_path: Path) -> None:
    """Removing a run's state also removes per-epoch checkpoints, which a user's configuration may save."""
    interrupted(tmp_path / "1")
    save(tmp_path / "1", 40).rename(tmp_path / "1" / STATE / "epoch_2.pth")
    remove_state(tmp_path / "1")
    assert not list(tmp_path.rglob("*.pth"))


def test_the_features_of_an_interrupted_run_are_removed(tmp_path: Path) -> None:
    """Because they take gigabytes, picture features of interrupted runs are removed even if a run is resumed."""
    kept = [interrupted(tmp_path / "1").work, interrupted(tmp_path / "2").work]
    for work in kept:
        (Path(work) / FEATURES).mkdir()
        (Path(work) / FEATURES / "0.bin").write_bytes(b"seen")
    new = job(tmp_path / "3")
    assert adopt_checkpoints(new, [Path(work) for work in reversed(kept)])
    assert not any((Path(work) / FEATURES).exists() for work in kept)
