"""Brings the files that a hub lists into a folder: resumed after a broken connection, every one checked by its hash.

Knows HTTP ranges and digests. A file under its own name is whole and checked; what is still coming is `NAME.part`. So a
run that was broken off anywhere is continued by the next one. Making the folder a model is left to the caller.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable
from hashlib import file_digest, sha1
from io import BufferedReader
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from inference.hub.listing import Hash, HubError, Listing, RemoteFile, explained, unreachable

Progress = Callable[[str, int], None]
"""(the file's path, bytes of all files that are here by now)"""

_PART: Final = ".part"
_CHUNK: Final = 1 << 20
_SILENCE: Final = 60.0
_TRIES: Final = 6
_SPARE: Final = 1 << 28


async def bring(listing: Listing, folder: Path, progress: Progress, *, pause: float = 1.0) -> None:
    """Make `folder` hold every file of the listing, whole and checked; what is already there is not fetched again.

    A connection that breaks is taken up again where it broke, after `pause` seconds, doubled each time, and given up
    after six times without a byte. Raises HubError; what has arrived stays for the next call, but for a file whose
    hash is wrong.
    """
    try:
        await _bring(listing, folder, progress, pause)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"The disk of {folder} is full: free {listing.size / 1e9:.1f} GB in all and run it again; "
                "it goes on where it stopped."
            ) from error
        raise HubError(f"{folder} cannot be written ({error}): take a folder that this user may write to.") from error


async def _bring(listing: Listing, folder: Path, progress: Progress, pause: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    missing = []
    for file in listing.files:
        if await asyncio.to_thread(_is_whole, file, folder / file.path):
            done += file.size
        else:
            missing.append(file)
        progress(file.path, done)
    _check_space(missing, folder)
    # No total time: a file takes as long as it takes, only silence is an error.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    async with aiohttp.ClientSession(
        timeout=timeout,
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        middlewares=(_headers_for_the_hub(listing),),
        trust_env=True,
    ) as session:
        for file in missing:
            path = folder / file.path
            part = path.with_name(path.name + _PART)
            part.parent.mkdir(parents=True, exist_ok=True)

            def here(size: int, file: RemoteFile = file, before: int = done) -> None:
                progress(file.path, before + size)

            await _fetch(session, listing, file, part, here, pause)
            if not await asyncio.to_thread(_is_whole, file, part):
                part.unlink()
                raise HubError(
                    f"{file.path} arrived damaged: its hash is not the one that {listing.source} names. It was thrown "
                    "away; run it again, and if that does not help, take another --source."
                )
            part.rename(path)
            done += file.size


def _headers_for_the_hub(listing: Listing) -> aiohttp.ClientMiddlewareType:
    """Puts the listing's headers into each request to the hub itself, not into those to where it redirects.

    As headers of the session they would not do: aiohttp, told to read proxies from the environment, reads ~/.netrc as
    well, and refuses a header "Authorization" where it finds the hub there, as git users have it.
    """
    hosts = {URL(file.url).origin() for file in listing.files}

    async def send(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.url.origin() in hosts:
            request.headers.update(listing.headers)
        return await handler(request)

    return send


async def _fetch(
    session: aiohttp.ClientSession,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    here: Callable[[int], None],
    pause: float,
) -> None:
    """Bring `part` to the file's size, through as many connections as it takes."""
    failures = 0
    while True:
        before = _size(part)
        if before > file.size:
            part.unlink()  # of another revision
            before = 0
        here(before)
        if before == file.size and part.exists():
            return
        try:
            await _continue(session, listing, file, part, before, here)
            if _size(part) < file.size:
                raise aiohttp.ClientPayloadError("it ended early")
        except (aiohttp.ClientError, TimeoutError) as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= _TRIES:
                raise unreachable(listing.source, error) from error
            await asyncio.sleep(pause * 2 ** (failures - 1))


async def _continue(
    session: aiohttp.ClientSession,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    before: int,
    here: Callable[[int], None],
) -> None:
    """One request for what is missing after `before` bytes. Raises aiohttp's errors for what may pass."""
    async with session.get(file.url, headers={"Range": f"bytes={before}-"} if before else {}) as response:
        if response.status == 429 or response.status >= 500:
            response.raise_for_status()
        if response.status not in (200, 206):
            raise explained(listing.source, listing.repo, response.status, f"{listing.revision}/{file.path}")
        # A server that knows no ranges begins anew.
        resumed = response.status == 206
        with part.open("ab" if resumed else "wb") as writer:
            size = before if resumed else 0
            async for chunk in response.content.iter_any():
                writer.write(chunk)
                size += len(chunk)
                if size > file.size:
                    raise HubError(f"{listing.source} sends more of {file.path} than it listed: try again later.")
                here(size)


def _check_space(missing: list[RemoteFile], folder: Path) -> None:
    need = sum(file.size - _size(folder / (file.path + _PART)) for file in missing)
    free = shutil.disk_usage(folder).free
    if missing and need + _SPARE > free:
        raise HubError(
            f"{need / 1e9:.1f} GB are still to come but {folder} has {free / 1e9:.1f} GB free: "
            "free some space, or take a folder on another disk."
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
        return _digest(reader, file) == file.digest


def _digest(reader: BufferedReader, file: RemoteFile) -> str:
    if file.kind is Hash.SHA256:
        return file_digest(reader, "sha256").hexdigest()
    digest = sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
