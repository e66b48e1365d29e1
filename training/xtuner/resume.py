"""Find and validate the checkpoints of interrupted training.

A checkpoint fits a job if the base model, the hyperparameters and the rows are the same. The run, its
paths, the number of processes and the division of steps into batches may differ. The adapters of blocks,
which a later run can reuse, fit a job under the same conditions.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile, is_zipfile

from training.job import Job
from training.run_folder import ADAPTER, BLOCKS, FEATURES, STATE

_FINGERPRINT: Final = "training.sha256"
_NUMBERED: Final = re.compile(r"_(\d+)\.pth$")
_NOT_COMPARED: Final = frozenset(
    {
        "run",
        "data",
        "images",
        "work",
        "former",
        "judged",
        "blocks",
        "notes",
        "device",
        "threads",
        "split",
        "processes",
        "save_steps",
        "keep_checkpoints",
        "checkpointing",
        "features_gigabytes",
        "courtesy",
    }
)


def block_jobs(job: Job) -> list[Job]:
    """Return the training jobs of a job's blocks, each with its own folder."""
    folder = Path(job.work) / BLOCKS
    return [replace(job, work=str(folder / str(rows)), first=rows, blocks=[], former="") for rows in job.blocks]


def has_adapter(job: Job) -> bool:
    """Return whether the job's folder has an adapter that fits the job."""
    return (Path(job.work) / ADAPTER).is_dir() and _belongs(Path(job.work) / STATE, fingerprint(job))


def latest_checkpoint(job: Job) -> Path | None:
    """Return the newest checkpoint in the job's `work` folder that fits the job, or None if there is none."""
    return _newest(Path(job.work) / STATE, fingerprint(job))


def prepare_state(job: Job) -> None:
    """Remove the adapter and all damaged or unrelated checkpoints from the job's `work` folder."""
    shutil.rmtree(Path(job.work) / ADAPTER, ignore_errors=True)
    state, wanted = Path(job.work) / STATE, fingerprint(job)
    while (newest := _newest(state, wanted)) is not None and not _is_intact(newest):
        newest.unlink()
    if newest is None and state.exists():
        shutil.rmtree(state)
    state.mkdir(exist_ok=True)
    (state / _FINGERPRINT).write_text(wanted + "\n", encoding="utf-8")


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints and features, which take gigabytes, from `folder`, but keep the loss log."""
    for each in _checkpoints(folder):
        _remove(each)


def remove_blocks(folder: Path) -> None:
    """Remove the folder of the blocks' training jobs from a run's directory."""
    _remove(folder / BLOCKS)


def remove_state(folder: Path) -> None:
    """Remove everything that a later run could resume from."""
    remove_checkpoints(folder)
    remove_blocks(folder)


def state_bytes(folder: Path) -> int:
    """Return the number of bytes that `remove_state` would free."""
    return sum(_size(file) for each in (*_checkpoints(folder), folder / BLOCKS) for file in (each, *each.rglob("*")))


def _checkpoints(folder: Path) -> list[Path]:
    state = folder / STATE
    return [*folder.glob(FEATURES), *state.glob("*.pth"), *state.glob("last_checkpoint")]


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # removed by a training run in progress
        return 0


def adopt_checkpoints(job: Job, earlier: Iterable[Path]) -> bool:
    """Move checkpoints that fit the job into its folder, from the first folder in `earlier` that has any.

    Blocks that fit the job are moved too. Any other state of the earlier runs is removed, because it may
    come from data that has since been erased.

    Returns:
        Whether anything was moved.
    """
    wanted = fingerprint(job)
    first, *_ = [*block_jobs(job), job]
    adopted = False
    for folder in earlier:
        if not adopted and _newest(folder / STATE, wanted):
            (folder / STATE).rename(Path(job.work) / STATE)
            adopted = True
        begun = folder / BLOCKS / str(first.first)
        if not (Path(job.work) / BLOCKS).exists() and _belongs(begun / STATE, fingerprint(first)):
            (folder / BLOCKS).rename(Path(job.work) / BLOCKS)
            adopted = True
        remove_state(folder)
    return adopted


_ORDER: Final = 2
"""The version of the order of samples (`StepSampler`). A checkpoint counts the samples of one order."""


def fingerprint(job: Job) -> str:
    """Return a hash of everything that determines the weights produced by a job."""
    values = {name: value for name, value in asdict(job).items() if name not in _NOT_COMPARED}
    values["order"] = _ORDER
    if job.recipe:
        values["split"] = job.split  # the schedule of a user's configuration may count batches
    if job.deepspeed:
        values["processes"] = job.processes  # each of them saves a partition
    digest = sha256(json.dumps(values, sort_keys=True).encode())
    for weights in sorted(Path(job.base).glob("*.safetensors")):
        # Compared by size and time, following links: hashing gigabytes would take longer than resuming saves.
        status = weights.stat()
        digest.update(f"{weights.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    for file in (job.data, job.recipe, job.judged, *(each["path"] for each in job.sources)):
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()


def _newest(state: Path, wanted: str) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none or the folder belongs to another job."""
    return max(_complete(state), default=(0, None))[1] if _belongs(state, wanted) else None


def _belongs(state: Path, wanted: str) -> bool:
    """Return whether the folder `state` belongs to the job with the fingerprint `wanted`."""
    try:
        return (state / _FINGERPRINT).read_text(encoding="utf-8").strip() == wanted
    except FileNotFoundError:
        return False


def _complete(state: Path) -> Iterator[tuple[int, Path]]:
    """Yield the number and the path of each complete checkpoint.

    torch writes zip archives; as their index is at the end, an incomplete one lacks it. DeepSpeed writes
    folders; only the one named by mmengine in `last_checkpoint` is complete.
    """
    last = state / "last_checkpoint"
    # The file contains the path at the time of writing, of which only the name is still valid.
    named = Path(last.read_text(encoding="utf-8", errors="replace").strip()).name if last.exists() else ""
    for each in state.glob("*.pth"):
        numbered = _NUMBERED.search(each.name)
        if numbered and (each.name == named if each.is_dir() else is_zipfile(each)):
            yield int(numbered[1]), each


def _is_intact(checkpoint: Path) -> bool:
    """Read a whole checkpoint file, and return whether the checksums of all its parts match."""
    if checkpoint.is_dir():
        return True
    try:
        with ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (BadZipFile, EOFError, RuntimeError):
        return False
