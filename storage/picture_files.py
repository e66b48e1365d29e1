"""Picture files, named after the SHA-256 of their bytes (`ab/abcdef…`), written once and checked when read."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from storage.atomic_files import PRIVATE, sync_directory, write_durably
from storage.connection import translating_os_errors
from storage.errors import Damaged, StorageError, UnknownRecord

_NAME = re.compile(r"[0-9a-f]{64}")
_INCOMING = "incoming"
_ABANDONED_SECONDS = 3600.0
"""A temporary file older than this was left by a killed process, because writing one takes only seconds."""


class PictureStore:
    """A folder of pictures, which several processes may use at once."""

    def __init__(self, directory: Path) -> None:
        """Use `directory` as the folder of pictures, creating it if needed.

        Raises:
            StorageError: The folder cannot be created or read.
        """
        self.directory = directory
        self._incoming = directory / _INCOMING
        with translating_os_errors(f"opening the picture folder {directory}"):
            directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=PRIVATE, exist_ok=True)
            oldest = time.time() - _ABANDONED_SECONDS
            for each in self._incoming.iterdir():
                with suppress(FileNotFoundError):  # another process deleted the same file
                    if each.stat().st_mtime < oldest:
                        each.unlink()

    def path(self, sha256: str) -> Path:
        """Return the path of a picture, whether or not the picture exists.

        Raises:
            StorageError: The name is invalid.
        """
        if _NAME.fullmatch(sha256) is None:
            raise StorageError(f"{sha256!r} is not a picture name, which consists of 64 hexadecimal digits.")
        return self.directory / sha256[:2] / sha256

    async def put(self, data: bytes) -> str:
        """Store `data` durably and return its name.

        An existing file is kept if it is intact, and rewritten if it is damaged.

        Raises:
            StorageError: The file cannot be written.
        """
        return await asyncio.to_thread(self._put, data)

    async def get(self, sha256: str) -> bytes:
        """Return a picture's bytes, checked against its name.

        Raises:
            UnknownRecord: There is no such picture.
            Damaged: The bytes do not match the name.
        """
        return await asyncio.to_thread(self._get, sha256)

    def files(self) -> list[Path]:
        """Return the paths of all pictures, in no particular order."""
        return [each for each in self.directory.glob("??/*") if _NAME.fullmatch(each.name)]

    def remove(self, sha256: str) -> None:
        """Delete a picture durably, if it exists.

        This method blocks; `PersonalData.remove_picture` calls it on the ledger's thread.

        Raises:
            StorageError: The picture cannot be deleted.
        """
        path = self.path(sha256)
        with translating_os_errors(f"deleting the picture {path}"):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_directory(path.parent)  # the process that deleted it may have died before this

    def _put(self, data: bytes) -> str:
        name = sha256(data).hexdigest()
        path = self.path(name)
        with translating_os_errors(f"writing the picture {path}"):
            if not path.parent.is_dir():
                path.parent.mkdir(mode=PRIVATE, exist_ok=True)
                sync_directory(self.directory)
            if path.is_file() and path.read_bytes() == data:
                sync_directory(path.parent)  # the process that wrote it may have died before this
            else:
                write_durably(path, data, temporary_folder=self._incoming)
        return name

    def _get(self, name: str) -> bytes:
        path = self.path(name)
        with translating_os_errors(f"reading the picture {path}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise UnknownRecord(
                    f"There is no picture {name} in {self.directory}: restore it from a backup."
                ) from error
        if sha256(data).hexdigest() != name:
            raise Damaged(
                f"The picture {path} is damaged: its bytes no longer match its name. Restore it from a backup."
            )
        return data
