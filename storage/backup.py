"""Backups of the ledger, the re-encoded pictures and, on request, the models, made while the bot runs.

A snapshot of the ledger is copied to a new folder first, followed by the pictures listed in the
snapshot, each of which is checked. The folder gets its final name once everything is on disk. Its layout
is that of `storage.dir`; to restore a backup, move the folder to that path.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from storage.atomic_files import PRIVATE, copy_through, sync_directory
from storage.base import column
from storage.connection import inspecting, translating_os_errors
from storage.errors import StorageError, UnknownRecord
from storage.ledger import FILE_NAME, Ledger
from storage.model_manifest import verify
from storage.model_store import ModelStore
from storage.picture_files import PictureStore

PICTURES = "pictures"
MODELS = "models"
_TRIES = 3
_BATCH = 2**26
"""The number of bytes of pictures that are written between two flushes. Commits to the ledger wait during a flush."""


@dataclass(frozen=True, slots=True)
class Backup:
    """The contents of a backup.

    Attributes:
        pictures: The number of pictures.
        models: The names of the models.
        lost: The names of pictures whose files were already missing.
    """

    pictures: int
    models: tuple[str, ...]
    lost: tuple[str, ...]


class _ErasedMeanwhile(Exception):
    """A user's data was erased during the backup, and the backup must not contain that data."""


async def back_up(ledger: Ledger, pictures: PictureStore, out: Path, models: ModelStore | None = None) -> Backup:
    """Write a verified backup to the new folder `out`, including the trained models if `models` is given.

    Raises:
        StorageError: The folder already exists, or some of the data is damaged. In either case, nothing is
            left behind.
    """
    if out.exists():
        raise StorageError(f"{out} already exists: choose another name for the backup.")
    for _ in range(_TRIES):
        part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
        try:
            with translating_os_errors(f"writing the backup {out}"):
                part.mkdir(mode=PRIVATE, parents=True)
                made = await _fill(ledger, pictures, part, models)
                await asyncio.to_thread(_publish, part, out)
                return made
        except _ErasedMeanwhile:
            continue
        finally:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
    raise StorageError("A user's data was deleted during every attempt at the backup: try again later.")


async def _fill(ledger: Ledger, pictures: PictureStore, part: Path, models: ModelStore | None) -> Backup:
    await ledger.backup(part / FILE_NAME)
    copies = PictureStore(part / PICTURES)  # used for its layout only: pictures are flushed many at a time
    names = await asyncio.to_thread(_pictures, part / FILE_NAME)
    lost, unflushed = [], 0
    for name in names:
        try:
            data = await pictures.get(name)
        except UnknownRecord:
            lost.append(name)
            continue
        await asyncio.to_thread(_write, copies.path(name), data)
        unflushed += len(data)
        if unflushed > _BATCH:
            # This flushes all disks, but flushing thousands of files one by one takes minutes.
            await asyncio.to_thread(os.sync)
            unflushed = 0
    known = {each.sha256 for each in await ledger.pictures.all()} if lost else set()
    if not known.issuperset(lost):
        raise _ErasedMeanwhile
    kept = [] if models is None else [models.path(name) for name in models.names()]
    for model in kept:
        await asyncio.to_thread(_copy_model, model, part / MODELS / model.name)
    return Backup(len(names) - len(lost), tuple(model.name for model in kept), tuple(lost))


def _pictures(path: Path) -> list[str]:
    with inspecting(path) as database:
        return column(database, "SELECT sha256 FROM pictures WHERE state = 'clean' ORDER BY sha256")


def _copy_model(model: Path, copy: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(model, copy, ignore=ignore, copy_function=copy_through)
    verify(copy)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _publish(part: Path, out: Path) -> None:
    os.sync()  # the remaining pictures, and the ends of the models' files
    if out.exists():
        raise StorageError(f"{out} already exists: choose another name for the backup.")
    part.rename(out)
    sync_directory(out.parent)
