"""A folder of published models: a model is built in a workspace, and published as a whole.

All methods here block (hashing a few gigabytes takes seconds): call them through `asyncio.to_thread`.
"""

from __future__ import annotations

import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from storage.atomic_files import sync_directory, sync_file
from storage.connection import translating_os_errors
from storage.errors import StorageError
from storage.model_manifest import MANIFEST, model_files, write_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BUILDING = ".building-"


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

    def seal(self, built: Path) -> str:
        """Write a workspace's manifest, flush its files to disk, and return the hash of the manifest.

        If files are added later, seal the workspace again; only the new files are then hashed.

        Raises:
            StorageError: The workspace is empty, or cannot be read or written.
        """
        manifest_hash = write_manifest(built)
        with translating_os_errors(f"writing the model {built}"):
            for _, file in model_files(built):
                sync_file(file)
            for folder in {built, *(each.parent for _, each in model_files(built))}:
                sync_directory(folder)
        return manifest_hash

    def publish(self, built: Path, name: str) -> tuple[Path, str]:
        """Publish a workspace as a model: seal it and rename the directory.

        Returns:
            The model's directory and manifest hash.

        Raises:
            StorageError: The name is taken.
        """
        path = self.path(name)
        if path.exists():
            raise StorageError(f"{path} already exists: choose another name for the new model.")
        manifest_hash = self.seal(built)
        with translating_os_errors(f"publishing the model {path}"):
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
        """Publish, under the name `name`, the model that `set_aside` moved to the path `aside`.

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
