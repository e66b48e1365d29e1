"""Model directories, each with a manifest of hashes.

A model is built in a workspace, published as a whole and checked before use. This module deals only with
files and digests; the contents of a checkpoint are up to the code that writes and loads it. All
functions here block (hashing a few gigabytes takes seconds): call them through `asyncio.to_thread`.

`manifest.json`::

    {"files": {"config.json": {"sha256": "…", "size": 1234}, …}, "hash": "…", "version": 1}

where `hash` is the SHA-256 of the `files` object as JSON with sorted keys and no spaces.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from storage.atomic_files import sync_directory, sync_file, write_durably
from storage.connection import translating_os_errors
from storage.errors import Damaged, StorageError, UnknownRecord

MANIFEST = "manifest.json"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BUILDING = ".building-"
_NAMED = 8
"""The most differences that an error names one by one; the rest are only counted."""


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

    Directories with identical files have the same hash.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    files = _records(directory)
    manifest_hash = _hash(files)
    values = {"version": _VERSION, "hash": manifest_hash, "files": files}
    text = json.dumps(values, indent=1, sort_keys=True, default=asdict)
    with translating_os_errors(f"writing the manifest of {directory}"):
        write_durably(directory / MANIFEST, (text + "\n").encode())
    return manifest_hash


def content_hash(directory: Path) -> str:
    """Return the hash over all files of a model, taken from its manifest or else computed from the files.

    Hashing gigabytes of files takes seconds. A damaged manifest is treated like a missing one. Directories
    with identical files have the same hash.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    try:
        return read_manifest(directory).hash
    except (UnknownRecord, Damaged):
        return _hash(_records(directory))


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
        present = dict(_files(directory))
        for name, record in expected.files.items():
            if name not in present:
                differences.append(f"{name} is missing")
            elif present[name].stat().st_size != record.size:
                differences.append(f"{name} has {present[name].stat().st_size} bytes instead of {record.size}")
            elif contents and _record(present[name]) != record:
                differences.append(f"{name} has changed")
    differences += [f"{name} is not in the manifest" for name in present if name not in expected.files]
    if differences:
        more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise Damaged(
            f"The model {directory} has changed since it was published: {', '.join(differences[:_NAMED])}{more}."
            " Promote another model, or restore this one."
        )
    return expected.hash


class ModelStore:
    """A folder of published models, each in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        """Use `directory` as the folder of models, creating it if needed.

        Raises:
            StorageError: The folder cannot be created.
        """
        self.directory = directory
        with translating_os_errors(f"opening the model folder {directory}"):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return the path of a model, whether or not the model exists.

        Raises:
            StorageError: The name is invalid.
        """
        if _NAME.fullmatch(name) is None:
            raise StorageError(
                f"{name!r} is not a valid model name: use letters, digits, dots, dashes and underscores."
            )
        return self.directory / name

    def names(self) -> list[str]:
        """Return the names of the published models, sorted."""
        return sorted(
            each.name for each in self.directory.iterdir() if _NAME.fullmatch(each.name) and (each / MANIFEST).is_file()
        )

    def workspace(self, name: str) -> Path:
        """Create an empty directory in which to build a model, on the same file system as the published models.

        Raises:
            StorageError: The name is invalid, or the directory cannot be created.
        """
        building = self._building(name)
        with translating_os_errors(f"creating the folder {building}"):
            building.mkdir()
        return building

    def publish(self, built: Path, name: str) -> tuple[Path, str]:
        """Publish a workspace as a model: write the manifest, flush everything to disk and rename the directory.

        Returns:
            The model's directory and manifest hash.

        Raises:
            StorageError: The name is taken.
        """
        path = self.path(name)
        if path.exists():
            raise StorageError(f"{path} already exists: choose another name for the new model.")
        manifest_hash = write_manifest(built)
        with translating_os_errors(f"publishing the model {path}"):
            for _, file in _files(built):
                sync_file(file)
            for folder in {built, *(each.parent for _, each in _files(built))}:
                sync_directory(folder)
            built.rename(path)
            sync_directory(self.directory)
        return path, manifest_hash

    def discard(self, built: Path) -> None:
        """Delete a workspace, if it exists.

        Raises:
            StorageError: The path is not that of a workspace, or the workspace cannot be deleted.
        """
        if built.parent != self.directory or not built.name.startswith(_BUILDING):
            raise StorageError(f"{built} is not a workspace of {self.directory}.")
        self._delete(built)

    def set_aside(self, name: str) -> Path | None:
        """Unpublish a model durably and return its new path, or None if there is no such model.

        Call `discard` or `restore` next; if the process is killed before then, `tidy` deletes the model.

        Raises:
            StorageError: The model's directory cannot be renamed.
        """
        path, aside = self.path(name), self._building(name)
        with translating_os_errors(f"deleting {path}"):
            try:
                path.rename(aside)
            except FileNotFoundError:
                return None
            sync_directory(self.directory)
        return aside

    def restore(self, aside: Path, name: str) -> None:
        """Publish again, as `name`, the model that `set_aside` moved to the path `aside`.

        Raises:
            StorageError: The model's directory cannot be renamed.
        """
        with translating_os_errors(f"restoring {name} from {aside}"):
            aside.rename(self.path(name))
            sync_directory(self.directory)

    def tidy(self) -> list[Path]:
        """Delete directories left half built or half removed by killed processes, and return their paths.

        Only the process that builds models may call this method, and only when it starts.
        """
        left = [each for each in self.directory.iterdir() if each.name.startswith(_BUILDING)]
        for each in left:
            self._delete(each)
        return left

    def _building(self, name: str) -> Path:
        """Return a new temporary path for a model that is being built or removed.

        Raises:
            StorageError: The name is invalid.
        """
        return self.path(name).with_name(f"{_BUILDING}{name}-{secrets.token_hex(4)}")

    def _delete(self, directory: Path) -> None:
        with translating_os_errors(f"deleting {directory}"), suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative and full paths of each file under `directory`, except the manifest and Python caches."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and name.as_posix() != MANIFEST and "__pycache__" not in name.parts:
            yield name.as_posix(), path


def _records(directory: Path) -> dict[str, FileRecord]:
    """Hash every file under `directory` and return the file records, keyed by relative path.

    Raises:
        StorageError: The directory is empty or unreadable.
    """
    with translating_os_errors(f"reading {directory}"):
        paths = dict(_files(directory))
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            files = dict(zip(paths, pool.map(_record, paths.values()), strict=True))
    if not files:
        raise StorageError(f"{directory} has no files: it is not a model.")
    return files


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _hash(files: dict[str, FileRecord]) -> str:
    return sha256(json.dumps(files, sort_keys=True, separators=(",", ":"), default=asdict).encode()).hexdigest()
