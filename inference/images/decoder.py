"""Parent side of the decoder for untrusted pictures: starting, feeding, timing and killing child processes.

A `PictureDecoder` manages one child, and its calls block; `PictureDecoders` is a pool for asyncio. The
parent never decodes pixels, and it validates the child's responses, because a hostile file may have
compromised the child. This module uses only the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final, Self

from inference.images.decoder_protocol import LONGEST_SIDE, READY, REQUEST, RESPONSE, CleanPicture, DecodeError, Refusal
from inference.process.environment import for_children

CPU_SECONDS: Final = 8
"""The limit on the processor time for one picture. A photo of 50 megapixels takes two to four seconds."""

WALL_SECONDS: Final = 30.0
"""The limit on the elapsed time for one picture, generous because a training run or an engine may keep the machine
busy."""

_START_SECONDS: Final = 60.0
"""The limit on the time that a child takes to import its libraries, usually half a second, but longer from a cold
disk."""

_MAX_JSON: Final = 1000
_MAX_BYTES: Final = 64 * 2**20
"""The maximum size of a clean picture in bytes. It has at most 16 megapixels, and even noise takes fewer bytes."""

_PHASH: Final = re.compile(r"[0-9a-f]{16}")
_SIGNATURES: Final = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}

_log = logging.getLogger(__name__)


class DecoderUnavailable(OSError):
    """The decoder process cannot be started or has been closed."""


class PictureDecoder:
    """One child process, started for the first picture and reused for later pictures.

    Calls from several threads are handled one at a time.

    Args:
        niceness: The number added to the child's nice value; with 19, the child yields to everything else.
    """

    def __init__(self, niceness: int = 0) -> None:
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._busy = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process ID, or None if there is no child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child process unless it is running, and wait until it is ready.

        Raises:
            DecoderUnavailable: The child cannot be started, or this decoder is closed.
        """
        with self._busy:
            self._running()

    def clean(self, data: bytes, max_megapixels: float) -> CleanPicture:
        """Decode a picture file of any supported format and return it re-encoded.

        Args:
            data: The file as it was sent.
            max_megapixels: The maximum number of megapixels; a larger picture is refused on the basis of its
                header, before decoding.

        Raises:
            DecodeError: The file is not a picture, is damaged or too large, or takes more time or memory than
                allowed.
            DecoderUnavailable: The child cannot be started, or this decoder is closed.
        """
        with self._busy:
            try:
                answer = self._exchange(data, max_megapixels)
            except BrokenPipeError:
                # The child reads a whole file before decoding it, so the child had already ended before this picture.
                self._end()
                answer = self._exchange(data, max_megapixels)
            if isinstance(answer, CleanPicture):
                return answer
            if answer is None:
                code = self._end()
                if self._closed:
                    raise DecoderUnavailable("the picture decoder is closed")
                _log.warning("the decoder of a picture of %s bytes ended with status %s", len(data), code)
                raise DecodeError(Refusal.TOO_COSTLY, killed=True)
            if answer is Refusal.TOO_COSTLY:
                self._end()  # its memory may be fragmented
            raise DecodeError(answer)

    def close(self) -> None:
        """Stop the child process; a `clean` call running in another thread raises `DecoderUnavailable`."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._busy:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the child process, starting it if necessary.

        Raises:
            DecoderUnavailable: The child cannot be started, or this decoder is closed.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._closed:
            raise DecoderUnavailable("the picture decoder is closed")
        try:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "inference.images.decoder_worker", str(self._niceness), str(CPU_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=for_children(),
                start_new_session=True,  # Ctrl-C in a terminal goes to this process only
            )
        except OSError as error:
            raise DecoderUnavailable(f"the picture decoder cannot be started: {error}") from error
        assert process.stdout is not None
        with _killed_after(process, _START_SECONDS):
            ready = process.stdout.read(len(READY))
        if ready != READY:
            code = self._end()
            raise DecoderUnavailable(f"the picture decoder ended with status {code} at startup: see the log")
        return process

    def _exchange(self, data: bytes, max_megapixels: float) -> CleanPicture | Refusal | None:
        """Send a file and return the child's answer, or None if the child ended or its response is invalid.

        Raises:
            BrokenPipeError: The child ended before it had read the whole file.
            DecoderUnavailable: The child cannot be started, or this decoder is closed.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        with _killed_after(process, WALL_SECONDS):
            process.stdin.write(REQUEST.pack(len(data), max_megapixels))
            process.stdin.write(data)
            process.stdin.flush()
            head = process.stdout.read(RESPONSE.size)
            if len(head) < RESPONSE.size:
                return None
            json_size, picture_size = RESPONSE.unpack(head)
            if json_size > _MAX_JSON or picture_size > _MAX_BYTES:
                return None
            description, picture = process.stdout.read(json_size), process.stdout.read(picture_size)
        if len(description) < json_size or len(picture) < picture_size:
            return None
        try:
            return _validated(json.loads(description), picture)
        except (ValueError, KeyError, TypeError):
            return None

    def _end(self) -> int | None:
        """Kill the child process and return its exit status, or None if there is no child."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code


class PictureDecoders:
    """A pool of decoders for asyncio; when all decoders are busy, pictures wait in order.

    If a call is cancelled, its decoder continues until the picture is decoded or the decoder is killed.
    """

    def __init__(self, count: int = 2, niceness: int = 0) -> None:
        self._decoders = [PictureDecoder(niceness) for _ in range(count)]
        self._free: SimpleQueue[PictureDecoder] = SimpleQueue()
        for each in self._decoders:
            self._free.put(each)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="picture-decoder")

    @property
    def pids(self) -> list[int]:
        """Process IDs of the running children."""
        return [each.pid for each in self._decoders if each.pid is not None]

    def warm(self) -> None:
        """Start the child processes in the background, so that the first picture need not wait for a child."""
        for each in self._decoders:
            self._threads.submit(_warm, each)

    async def clean(self, data: bytes, max_megapixels: float) -> CleanPicture:
        """Decode and re-encode a picture file in a free child process, as `PictureDecoder.clean` does."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._clean, data, max_megapixels)

    async def close(self) -> None:
        """Run `shut_down` in a thread, so that it does not block the event loop."""
        await asyncio.to_thread(self.shut_down)

    def shut_down(self) -> None:
        """Stop the child processes. Calls to `clean` in progress raise `DecoderUnavailable`."""
        for each in self._decoders:
            each.close()
        self._threads.shutdown(cancel_futures=True)

    def _clean(self, data: bytes, max_megapixels: float) -> CleanPicture:
        decoder = self._free.get()
        try:
            return decoder.clean(data, max_megapixels)
        finally:
            self._free.put(decoder)
            if decoder.pid is None:
                with contextlib.suppress(RuntimeError):  # the pool has been closed
                    self._threads.submit(_warm, decoder)


def _warm(decoder: PictureDecoder) -> None:
    try:
        decoder.start()
    except DecoderUnavailable as error:
        _log.error("%s", error)


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kill the child if the block takes longer than `seconds`, so that reads and writes on its pipes end."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _validated(answer: dict[str, object], picture: bytes) -> CleanPicture | Refusal:
    """Validate a child's response and return the clean picture or the reason for the refusal.

    Raises:
        ValueError, KeyError, TypeError: The response is invalid.
    """
    if "refused" in answer:
        return Refusal(str(answer["refused"]))
    media_type, width, height, phash = (answer[name] for name in ("media_type", "width", "height", "phash"))
    if not (isinstance(width, int) and isinstance(height, int) and isinstance(phash, str)):
        raise TypeError("a size or the hash is missing")
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE and _PHASH.fullmatch(phash)):
        raise ValueError("the size or the hash is out of bounds")
    if not picture.startswith(_SIGNATURES[str(media_type)]):
        raise ValueError("the picture's format does not match its media type")
    return CleanPicture(picture, str(media_type), width, height, phash)
