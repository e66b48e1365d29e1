"""Resumable download of the files in a hub's listing into a folder, verifying every file's hash.

The function `huggingface_hub.snapshot_download` is not enough: it checks sizes but no hashes, gives up
when a connection breaks in the middle of a file, and lets ~/.netrc replace HF_TOKEN (huggingface_hub 0.36). A file
under its final name is complete and verified; an incomplete file is called `NAME.part`, and the next run
resumes it.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable
from hashlib import file_digest, sha1
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from inference.hub.listing import HubError, Listing, RemoteFile, status_error, unreachable

Progress = Callable[[str, int], None]
"""A function (path of the current file, total number of bytes downloaded so far)."""

_PART: Final = ".part"
_CHUNK: Final = 1 << 20
_SILENCE: Final = 60.0  # seconds without a byte before a connection counts as broken
_TRIES: Final = 6
_GIT_DIGITS: Final = 40  # of a SHA-1
_SPARE: Final = 1 << 28  # bytes that must stay free on the disk


async def download(listing: Listing, folder: Path, progress: Progress, *, pause: float = 1.0) -> None:
    """Download every file of the listing into `folder`, except files that are already complete.

    When a connection breaks, the download resumes after `pause` seconds; the pause doubles with each
    further failure. Received data is kept for the next run, except for a file with a wrong hash.

    Raises:
        HubError: The download failed, for example after six connections in a row without any data.
    """
    try:
        await _Download(listing, folder, progress, pause).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"The disk that holds {folder} is full: free up {listing.size / 1e9:.1f} GB in all and run the command "
                "again; it continues where it stopped."
            ) from error
        raise HubError(f"{folder} cannot be written ({error}): choose a folder that this user may write to.") from error


class _Download:
    def __init__(self, listing: Listing, folder: Path, progress: Progress, pause: float) -> None:
        self._listing = listing
        self._folder = folder
        self._progress = progress
        self._pause = pause
        self._complete = 0  # bytes of complete files

    async def run(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = []
        for file in self._listing.files:
            if await asyncio.to_thread(_is_whole, file, self._folder / file.path):
                self._complete += file.size
            else:
                missing.append(file)
            self._progress(file.path, self._complete)
        _check_space(missing, self._folder)
        # There is no total timeout: large files take a long time, and only silence is an error.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        async with aiohttp.ClientSession(
            timeout=timeout,
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            middlewares=(_hub_headers(self._listing),),
            trust_env=True,
        ) as session:
            for file in missing:
                await self._fetch(session, file)

    async def _fetch(self, session: aiohttp.ClientSession, file: RemoteFile) -> None:
        """Download one file over as many connections as needed, check its hash and give it its final name."""
        path = self._folder / file.path
        part = path.with_name(path.name + _PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        if _size(part) > file.size:
            part.unlink()  # it belongs to another revision
        failures = 0
        while not part.exists() or _size(part) < file.size:
            before = _size(part)
            self._progress(file.path, self._complete + before)
            try:
                await self._continue(session, file, part)
                if _size(part) < file.size:
                    raise aiohttp.ClientPayloadError("the response ended early")
            except (aiohttp.ClientError, TimeoutError) as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= _TRIES:
                    raise unreachable(self._listing.source, error) from error
                await asyncio.sleep(self._pause * 2 ** (failures - 1))
        if not await asyncio.to_thread(_is_whole, file, part):
            part.unlink()
            raise HubError(
                f"{file.path} is damaged: its hash differs from the one that {self._listing.source} lists. The "
                "file was deleted; run the command again, and if that does not help, choose another --source."
            )
        part.rename(path)
        self._complete += file.size
        self._progress(file.path, self._complete)

    async def _continue(self, session: aiohttp.ClientSession, file: RemoteFile, part: Path) -> None:
        """Request the missing bytes of `file` and write them to `part`.

        Temporary failures raise aiohttp's exceptions.
        """
        listing, size = self._listing, _size(part)
        async with session.get(file.url, headers={"Range": f"bytes={size}-"} if size else {}) as response:
            if response.status == 429 or response.status >= 500:
                response.raise_for_status()
            if response.status not in (200, 206):
                raise status_error(listing.source, listing.repo, response.status, f"{listing.revision}/{file.path}")
            if response.status == 200:  # a server that does not support ranges starts from the first byte
                size = 0
            with part.open("ab" if size else "wb") as writer:
                async for chunk in response.content.iter_any():
                    writer.write(chunk)
                    size += len(chunk)
                    if size > file.size:
                        raise HubError(f"{listing.source} sent more bytes of {file.path} than listed: try again later.")
                    self._progress(file.path, self._complete + size)


def _hub_headers(listing: Listing) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that adds the listing's headers only to requests to the hub itself.

    Requests that are redirected to other hosts do not get the headers. Session headers would not work: with
    `trust_env`, aiohttp also reads ~/.netrc, and refuses an "Authorization" header for a host that is listed
    there.
    """
    hosts = {URL(file.url).origin() for file in listing.files}

    async def send(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.url.origin() in hosts:
            request.headers.update(listing.headers)
        return await handler(request)

    return send


def _check_space(missing: list[RemoteFile], folder: Path) -> None:
    need = sum(file.size - _size(folder / (file.path + _PART)) for file in missing)
    free = shutil.disk_usage(folder).free
    if missing and need + _SPARE > free:
        raise HubError(
            f"{need / 1e9:.1f} GB remain to be downloaded, but {folder} has {free / 1e9:.1f} GB free: "
            "free some space, or choose a folder on another disk."
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_whole(file: RemoteFile, path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as reader:
        if len(file.digest) != _GIT_DIGITS:
            return file_digest(reader, "sha256").hexdigest() == file.digest
        digest = sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest() == file.digest
