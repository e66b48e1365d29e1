"""Who may go on from which checkpoints: the same training, and nobody else."""

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
    """A job on these rows."""
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(rows)
    made = Job(folder.name, "base", str(folder / "train.json"), "images", str(folder), "system")
    return replace(made, **changes)


def save(folder: Path, number: int) -> Path:
    """A checkpoint as torch writes one: an archive."""
    file = folder / STATE / f"iter_{number}.pth"
    with ZipFile(file, "w") as archive:
        archive.writestr("data/0", b"weights" * 100)
    return file


def interrupted(folder: Path, **changes: Any) -> Job:
    """A job that was cut short after its checkpoint at batch 40."""
    made = job(folder, **changes)
    prepare_state(made)
    save(folder, 40)
    (folder / STATE / "last_checkpoint").write_text(str(folder / STATE / "iter_40.pth"))
    (folder / STATE / "vis_data").mkdir()
    return made


def test_the_same_job_goes_on(tmp_path: Path) -> None:
    """A job begun again finds its checkpoint, also in smaller batches, with other threads or processes."""
    made = interrupted(tmp_path / "1")
    for same in (made, replace(made, split=2), replace(made, threads=3, processes=2)):
        prepare_state(same)
        assert latest_checkpoint(same) == tmp_path / "1" / STATE / "iter_40.pth"


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-5}, {"base": "other"}, {"system": "other"}, {"seed": 7}, {"deepspeed": 1}]
)
def test_another_training_begins_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    """With another number or base nothing is continued, and what the folder held is gone."""
    other = replace(interrupted(tmp_path / "1"), **change)
    assert latest_checkpoint(other) is None
    prepare_state(other)
    assert [each.name for each in (tmp_path / "1" / STATE).iterdir()] == ["training.sha256"]


def test_other_weights_at_the_same_place_begin_anew(tmp_path: Path) -> None:
    """A base that was replaced is another base, also where its folder has links to the weights."""
    weights, base = tmp_path / "weights", tmp_path / "base"
    weights.write_bytes(b"weights")
    base.mkdir()
    (base / "model.safetensors").symlink_to(weights)
    made = interrupted(tmp_path / "1", base=str(base))
    assert latest_checkpoint(made) is not None
    weights.write_bytes(b"other weights")
    assert latest_checkpoint(made) is None


def test_other_rows_begin_anew(tmp_path: Path) -> None:
    """A row more, or one that was withdrawn, makes it another training."""
    made = interrupted(tmp_path / "1")
    Path(made.data).write_text("[1]")
    assert latest_checkpoint(made) is None


def test_a_checkpoint_that_is_not_there_is_none(tmp_path: Path) -> None:
    """When the newest one was never finished or is gone, the training begins anew."""
    made = interrupted(tmp_path / "1")
    (tmp_path / "1" / STATE / "iter_40.pth").unlink()
    assert latest_checkpoint(made) is None


def test_what_was_not_written_to_its_end_is_no_checkpoint(tmp_path: Path) -> None:
    """The end of the power leaves half a file, or an empty note of the newest: the whole one before it is taken."""
    made = interrupted(tmp_path / "1")
    half = save(tmp_path / "1", 80)
    half.write_bytes(half.read_bytes()[:300])
    (tmp_path / "1" / STATE / "last_checkpoint").write_text("")
    assert latest_checkpoint(made) == tmp_path / "1" / STATE / "iter_40.pth"
    (tmp_path / "1" / STATE / "iter_40.pth").unlink()
    assert latest_checkpoint(made) is None
    assert not adopt_checkpoints(job(tmp_path / "2"), [tmp_path / "1"])


def test_a_damaged_checkpoint_is_removed(tmp_path: Path) -> None:
    """One whose bytes have changed on the disk would fail whoever goes on from it, every time: the one before is next,
    and without one the training begins anew.
    """
    made = interrupted(tmp_path / "1")
    newest = save(tmp_path / "1", 80)
    for damaged in (newest, tmp_path / "1" / STATE / "iter_40.pth"):
        damaged.write_bytes(damaged.read_bytes().replace(b"weights", b"WEIGHTS", 1))
        prepare_state(made)
        assert not damaged.exists()
    assert latest_checkpoint(made) is None
    assert [each.name for each in (tmp_path / "1" / STATE).iterdir()] == ["training.sha256"]


def test_a_new_run_of_the_same_training_takes_over(tmp_path: Path) -> None:
    """It gets the checkpoints of the newest such run; all others are removed, their logs stay."""
    for number, rows in (("1", "[1, 2]"), ("2", "[1, 2]"), ("3", "[1]")):
        interrupted(tmp_path / number, rows=rows)
    new = job(tmp_path / "4")
    assert adopt_checkpoints(new, [tmp_path / each for each in ("3", "2", "1")])
    assert latest_checkpoint(new) == tmp_path / "4" / STATE / "iter_40.pth"
    assert not (tmp_path / "2" / STATE).exists()
    for other in ("1", "3"):
        assert [each.name for each in sorted((tmp_path / other / STATE).iterdir())] == ["training.sha256", "vis_data"]


def test_nothing_to_take_over_is_nothing(tmp_path: Path) -> None:
    """Without an earlier run, or with runs of other data, a run begins anew."""
    new = job(tmp_path / "2")
    assert not adopt_checkpoints(new, [])
    interrupted(tmp_path / "1", rows="[3]")
    assert not adopt_checkpoints(new, [tmp_path / "1"])
    assert latest_checkpoint(new) is None


def test_a_folder_is_a_checkpoint_too(tmp_path: Path) -> None:
    """DeepSpeed's checkpoints are folders, which count when they have been named."""
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
    """A configuration of one's own may save by epoch."""
    interrupted(tmp_path / "1")
    save(tmp_path / "1", 40).rename(tmp_path / "1" / STATE / "epoch_2.pth")
    remove_state(tmp_path / "1")
    assert not list(tmp_path.rglob("*.pth"))


def test_what_a_cut_off_run_saw_is_removed_by_the_next(tmp_path: Path) -> None:
    """Features of pictures, gigabytes of them, go from a run that is continued and from one that is not."""
    kept = [interrupted(tmp_path / "1").work, interrupted(tmp_path / "2").work]
    for work in kept:
        (Path(work) / FEATURES).mkdir()
        (Path(work) / FEATURES / "0.bin").write_bytes(b"seen")
    new = job(tmp_path / "3")
    assert adopt_checkpoints(new, [Path(work) for work in reversed(kept)])
    assert not any((Path(work) / FEATURES).exists() for work in kept)
