"""The manifest of a model directory: the hash of each file and one hash over all files.

This module deals only with files and digests; the contents of a checkpoint are up to the code that writes and loads
it. All functions here block (hashing a few gigabytes takes seconds): call them through `asyncio.to_thread`.

`manifest.json`::

    {"files": {"config.json": {"sha256": "…", "size": 1234}, …}, "hash": "…", "version": 1}

where `hash` is the SHA-256 of the `files` object as JSON with sorted keys and no spaces.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from storage.atomic_files import write_durably, write_text
from storage.connection import translating_os_errors
from storage.errors import Damaged, StorageError, UnknownRecord

MANIFEST = "manifest.json"
CARD = "README.md"
"""The model's card, which is written after the evaluation."""

_VERSION = 1
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_CLOCK_STEP = 20_000_000
"""Nanoseconds by which a file's modification time may lag behind the clock."""

_NAMED = 8
"""The maximum number of differences that an error lists; the rest are only counted."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a model.

    Attributes:
        sha256: The SHA-256 of the file in hexadecimal.
        size: The size in bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a model directory, keyed by relative path, and one hash over all the files."""

    hash: str
    files: dict[str, FileRecord]


def write_manifest(directory: Path) -> str:
    """Hash every file under `directory`, write the manifest and return the hash over all files.

    Directories with identical files have the same hash. If there is a manifest already, only files that were
    written since are hashed.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    began = time.time_ns()
    files = _records(directory, _unchanged(directory))
    manifest_hash = _hash(files)
    values = {"version": _VERSION, "hash": manifest_hash, "files": files}
    text = json.dumps(values, indent=1, sort_keys=True, default=asdict)
    with translating_os_errors(f"writing the manifest of {directory}"):
        write_durably(directory / MANIFEST, (text + "\n").encode())
        # Files written after their hashing must look newer than the manifest.
        os.utime(directory / MANIFEST, ns=(began - _CLOCK_STEP, began - _CLOCK_STEP))
    return manifest_hash


def files_hash(directory: Path) -> str:
    """Return the hash over all files of a model.

    The hash is read from the manifest. If that is missing or damaged, the hash is computed from the files, which takes
    some seconds if they are large.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    try:
        return read_manifest(directory).hash
    except (UnknownRecord, Damaged):
        return _hash(_records(directory))


def content_hash(directory: Path, known: Path | None = None) -> str:
    """Return the hash over all files of a model except its card.

    The hash is read from the manifest. If that is missing or damaged, the hash is computed from the files, which takes
    some seconds if they are large. It is the same before and after the model's evaluation and publication. Directories
    with identical files have the same hash.

    Args:
        directory: The model's directory.
        known: A folder that caches computed hashes. A cached hash is returned as long as the names, sizes and
            modification times of the model's files stay the same. Damaged entries are ignored.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    try:
        return _content_hash(read_manifest(directory).files)
    except (UnknownRecord, Damaged):
        kept = known / f"{_appearance(directory)}.hash" if known else None
    if kept:
        with suppress(OSError):
            if _DIGEST.fullmatch(digest := kept.read_bytes()):
                return digest.decode()
    found = _content_hash(_records(directory))
    if kept:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, found)
    return found


def _appearance(directory: Path) -> str:
    """Return a hash of the path of a directory and of its files' names, sizes and modification times."""
    with translating_os_errors(f"reading {directory}"):
        files = [(name, (stat := path.stat()).st_size, stat.st_mtime_ns) for name, path in model_files(directory)]
    return sha256(json.dumps([str(directory.resolve()), files]).encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a model directory without reading the model's files.

    Raises:
        UnknownRecord: There is no manifest.
        Damaged: The manifest is inconsistent.
    """
    path = directory / MANIFEST
    with translating_os_errors(f"reading {path}"):
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            files = {name: FileRecord(**record) for name, record in values["files"].items()}
            manifest, version = Manifest(values["hash"], files), values["version"]
        except FileNotFoundError as error:
            raise UnknownRecord(f"{directory} has no {MANIFEST}: it is not a published model.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} is damaged ({error}): promote another model, or restore this one.") from error
    if version != _VERSION:
        raise StorageError(f"{path} has format {version}, but this version reads format {_VERSION}: update thumbtune.")
    if manifest.hash != _hash(files):
        raise Damaged(f"{path} is damaged (its hash does not match): promote another model, or restore this one.")
    return manifest


def verify(directory: Path, manifest_hash: str = "", *, contents: bool = True) -> str:
    """Compare every file of a model with the manifest, and return the hash over all files.

    Args:
        directory: The model's directory.
        manifest_hash: The hash returned at publication, which the manifest must have; an empty string
            accepts any hash.
        contents: Whether to hash the files. If False, only names and sizes are compared, which takes almost
            no time.

    Raises:
        Damaged: A file is missing, changed or new.
        UnknownRecord: There is no manifest.
    """
    expected = read_manifest(directory)
    differences = []
    if manifest_hash and expected.hash != manifest_hash:
        differences.append(f"{MANIFEST} has been replaced")
    with translating_os_errors(f"checking the model {directory}"):
        present = dict(model_files(directory))
        sizes = {name: path.stat().st_size for name, path in present.items()}
        whole = {name: present[name] for name, record in expected.files.items() if sizes.get(name) == record.size}
        hashed = _hashed(whole) if contents else {}
    for name, record in expected.files.items():
        if name not in present:
            differences.append(f"{name} is missing")
        elif name not in whole:
            differences.append(f"{name} has {sizes[name]} bytes instead of {record.size}")
        elif hashed.get(name, record) != record:
            differences.append(f"{name} has changed")
    differences += [f"{name} is not in the manifest" for name in present if name not in expected.files]
    if differences:
        more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise Damaged(
            f"The model {directory} has changed since it was published: {', '.join(differences[:_NAMED])}{more}."
            " Promote another model, or restore this one."
        )
    return expected.hash


def model_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative and full paths of each file under `directory`, except the manifest and Python caches."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and name.as_posix() != MANIFEST and "__pycache__" not in name.parts:
            yield name.as_posix(), path


def _unchanged(directory: Path) -> dict[str, FileRecord]:
    """Return the records of the manifest whose files have the same size and are older than the manifest."""
    with suppress(UnknownRecord, Damaged, FileNotFoundError):
        recorded, written = read_manifest(directory).files, (directory / MANIFEST).stat().st_mtime_ns
        present = {name: path.stat() for name, path in model_files(directory) if name in recorded}
        return {
            name: recorded[name]
            for name, stat in present.items()
            if stat.st_size == recorded[name].size and stat.st_mtime_ns < written
        }
    return {}


def _records(directory: Path, known: Mapping[str, FileRecord] | None = None) -> dict[str, FileRecord]:
    """Hash every file under `directory` but the `known` ones, and return all records, keyed by relative path.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    with translating_os_errors(f"reading {directory}"):
        paths = dict(model_files(directory))
        files = dict(known or {})
        files |= _hashed({name: path for name, path in paths.items() if name not in files})
    if not files:
        raise StorageError(f"{directory} has no files: it is not a model.")
    return files


def _hashed(paths: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Hash several files at a time, and return their records under the keys of `paths`."""
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return dict(zip(paths, pool.map(_record, paths.values()), strict=True))


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _content_hash(files: dict[str, FileRecord]) -> str:
    return _hash({name: record for name, record in files.items() if name != CARD})


def _hash(files: dict[str, FileRecord]) -> str:
    return sha256(json.dumps(files, sort_keys=True, separators=(",", ":"), default=asdict).encode()).hexdigest()
