"""Checkpoints of a training that was cut short, and who may go on from them. Standard library only.

Knows the folder that mmengine fills, which checkpoints there are whole, and what makes two jobs the same training: the
base, the numbers and the rows, not the run, the place, the processes or how a step is cut into batches.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile, is_zipfile

from training.job import Job
from training.run_folder import FEATURES, STATE

_FINGERPRINT: Final = "training.sha256"
_NUMBERED: Final = re.compile(r"_(\d+)\.pth$")
_OTHERWISE: Final = frozenset(
    {
        "run",
        "data",
        "images",
        "work",
        "former",
        "held_out",
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


def checkpoint(job: Job) -> Path | None:
    """The newest checkpoint of this very training in the job's `work`, None without one."""
    return _newest(Path(job.work) / STATE, fingerprint(job))


def begin(job: Job) -> None:
    """Make room for a training: what its folder holds of another one, or holds damaged, is removed."""
    state, wanted = Path(job.work) / STATE, fingerprint(job)
    while (newest := _newest(state, wanted)) is not None and not _sound(newest):
        newest.unlink()
    if newest is None and state.exists():
        shutil.rmtree(state)
    state.mkdir(exist_ok=True)
    (state / _FINGERPRINT).write_text(wanted + "\n", encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove what a run's directory has for the training alone, gigabytes of it; the log stays."""
    for each in _for_the_training(folder):
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def removable(folder: Path) -> int:
    """How many bytes `remove` would free."""
    return sum(_size(file) for each in _for_the_training(folder) for file in (each, *each.rglob("*")))


def _for_the_training(folder: Path) -> list[Path]:
    state = folder / STATE
    return [*folder.glob(FEATURES), *state.glob("*.pth"), *state.glob("last_checkpoint")]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # a training goes on, and has removed it meanwhile
        return 0


def take_over(job: Job, earlier: Iterable[Path]) -> bool:
    """Move to the job what the first of the `earlier` runs' directories that had the same training left of it.

    What all others have for the training alone is removed: it may be of data that has been forgotten since.
    """
    wanted = fingerprint(job)
    taken = False
    for folder in earlier:
        if not taken and _newest(folder / STATE, wanted):
            (folder / STATE).rename(Path(job.work) / STATE)
            taken = True
        remove(folder)
    return taken


def fingerprint(job: Job) -> str:
    """What the training is, as a hash."""
    values = {name: value for name, value in asdict(job).items() if name not in _OTHERWISE}
    if job.recipe:
        values["split"] = job.split  # its schedule may count batches
    if job.deepspeed:
        values["processes"] = job.processes  # each of them has saved a part
    digest = sha256(json.dumps(values, sort_keys=True).encode())
    for weights in sorted(Path(job.base).glob("*.safetensors")):
        # Of the file that a link leads to; reading gigabytes would take longer than what is saved.
        there = weights.stat()
        digest.update(f"{weights.name} {there.st_size} {there.st_mtime_ns}\n".encode())
    for file in (job.data, job.recipe, job.held_out, *(each["path"] for each in job.sources)):
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()


def _newest(state: Path, wanted: str) -> Path | None:
    """The newest checkpoint that was written to its end, None if the folder is of another training than `wanted`."""
    try:
        if (state / _FINGERPRINT).read_text(encoding="utf-8").strip() != wanted:
            return None
    except FileNotFoundError:
        return None
    return max(_written(state), default=(0, None))[1]


def _written(state: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints that are there to their end, with their numbers: torch's are zip archives, whose index ends them.

    DeepSpeed's are folders; of these that counts which mmengine has named when it was written.
    """
    last = state / "last_checkpoint"
    # Named by its place at that time.
    named = Path(last.read_text(encoding="utf-8", errors="replace").strip()).name if last.exists() else ""
    for each in state.glob("*.pth"):
        numbered = _NUMBERED.search(each.name)
        if numbered and (each.name == named if each.is_dir() else is_zipfile(each)):
            yield int(numbered[1]), each


def _sound(saved: Path) -> bool:
    """Whether the sums of all parts of a file are right. Reads it whole."""
    if saved.is_dir():
        return True
    try:
        with ZipFile(saved) as parts:
            return parts.testzip() is None
    except (BadZipFile, EOFError, RuntimeError):
        return False
