"""Killable child processes that decode untrusted pictures.

`PictureDecoder` is one child and blocks; `PictureDecoders` is a pool of them for asyncio. A child
(`python -m inference.images.decoder_worker`) has limits on processor time and memory, and is killed when it takes too
long. Standard library only: this process never decodes a pixel.

A request is the two numbers of `REQUEST`, then the file. A response is the two lengths of `RESPONSE`, then JSON, then
the clean picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Final, Self

from inference.process.environment import for_children

LONGEST_SIDE: Final = 4096
"""Larger pictures are scaled down: the model sees at most 12 tiles of 448 pixels."""

CPU_SECONDS: Final = 8
"""Processor time for one picture. A photo of 50 megapixels takes two to four seconds."""

WALL_SECONDS: Final = 30.0
"""Time for one picture on a machine that is busy with something else: a training, an engine."""

START_SECONDS: Final = 60.0
"""Time for a child to import its libraries: half a second, longer from a cold disk."""

READY: Final = b"\x06"
REQUEST: Final = struct.Struct("<Id")
RESPONSE: Final = struct.Struct("<II")
MOST_JSON: Final = 1000
MOST_BYTES: Final = 64 * 2**20
"""A clean picture has at most 16 megapixels, of which even noise takes less."""

_PHASH: Final = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


class Refusal(StrEnum):
    """Why a file is refused."""

    NOT_A_PICTURE = "not a picture"
    BROKEN = "damaged or cut off"
    TOO_MANY_PIXELS = "too many pixels"
    TOO_COSTLY = "more time or memory than a picture may take"


class PictureRefused(Exception):
    """The file is refused; `reason` says why. `killed` is true where it cost the decoder its life."""

    def __init__(self, reason: Refusal, *, killed: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.killed = killed


class DecoderUnavailable(OSError):
    """The decoder process cannot be started, or was closed."""


@dataclass(frozen=True, slots=True)
class CleanPicture:
    """A re-encoded picture: upright, opaque, sRGB, without metadata, as baseline JPEG or PNG.

    `phash` is its 64-bit perceptual hash in hex; `width` and `height` are pixels.
    """

    data: bytes
    media_type: str
    width: int
    height: int
    phash: str


class PictureDecoder:
    """One child process, started for the first picture and kept for the next. One caller at a time.

    Args:
        niceness: Added to the child's scheduling priority; 19 yields to everything else.
    """

    def __init__(self, niceness: int = 0) -> None:
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._busy = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None without a child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child unless it runs, and wait until it takes pictures. Raises `DecoderUnavailable`."""
        with self._busy:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        self._end()
        if self._closed:
            raise DecoderUnavailable("the picture decoder is closed")
        command = [sys.executable, "-m", "inference.images.decoder_worker", str(self._niceness), str(CPU_SECONDS)]
        # The numeric libraries would start a thread for each core to transform 32 x 32 pixels.
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=for_children() | alone,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a terminal reaches only us
            )
        except OSError as error:
            raise DecoderUnavailable(f"the picture decoder cannot be started: {error}") from error
        with self._deadline(START_SECONDS):
            ready = _read(self._process.stdout, len(READY))
        if ready != READY:
            code = self._end()
            raise DecoderUnavailable(f"the picture decoder ended with {code} at its start: see the log for its error")

    def clean(self, data: bytes, max_megapixels: float) -> CleanPicture:
        """Decode a file of any supported format and return it re-encoded.

        Args:
            data: The file as it was sent.
            max_megapixels: More pixels than this are refused by the header, before decoding.

        Raises:
            PictureRefused: The file is no picture, is damaged, or takes more than a picture may.
            DecoderUnavailable: There is no decoder.
        """
        with self._busy:
            try:
                answer = self._answer(data, max_megapixels)
            except BrokenPipeError:
                self._end()  # it had ended before: that was not this picture
                answer = self._answer(data, max_megapixels)
            if isinstance(answer, CleanPicture):
                return answer
            if answer is None:
                code = self._end()
                if self._closed:
                    raise DecoderUnavailable("the picture decoder is closed")
                log.warning("a picture of %s bytes ended its decoder with %s", len(data), code)
                raise PictureRefused(Refusal.TOO_COSTLY, killed=True)
            if answer is Refusal.TOO_COSTLY:
                self._end()  # it may not have got its memory back in one piece
            raise PictureRefused(answer)

    def _answer(self, data: bytes, max_megapixels: float) -> CleanPicture | Refusal | None:
        self.start()
        process = self._process
        assert process is not None
        with self._deadline(WALL_SECONDS):
            return _asked(process, data, max_megapixels)

    def close(self) -> None:
        """End the child; a call of `clean` in another thread raises `DecoderUnavailable`."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._busy:
            self._end()

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kill the child when the block takes longer: whatever waits for its pipes then ends."""
        assert self._process is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> int | None:
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
    """A pool of decoders for asyncio: so many pictures at a time, the others wait in order.

    A cancelled call leaves its decoder at work until that has ended or was killed.
    """

    def __init__(self, count: int = 2, niceness: int = 0) -> None:
        self._decoders = [PictureDecoder(niceness) for _ in range(count)]
        self._free: SimpleQueue[PictureDecoder] = SimpleQueue()
        for each in self._decoders:
            self._free.put(each)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="picture-decoder")

    @property
    def pids(self) -> list[int]:
        """The process ids of the children that run."""
        return [each.pid for each in self._decoders if each.pid is not None]

    def warm(self) -> None:
        """Start the children in the background, so that the first picture does not wait for one."""
        for each in self._decoders:
            self._threads.submit(self._warm, each)

    async def clean(self, data: bytes, max_megapixels: float) -> CleanPicture:
        """As `PictureDecoder.clean`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._clean, data, max_megapixels)

    async def close(self) -> None:
        """As `shut_down`, off the event loop."""
        await asyncio.to_thread(self.shut_down)

    def shut_down(self) -> None:
        """End the children. What is being decoded raises `DecoderUnavailable`."""
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
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    self._threads.submit(self._warm, decoder)

    def _warm(self, decoder: PictureDecoder) -> None:
        try:
            decoder.start()
        except DecoderUnavailable as error:
            log.error("%s", error)


def _asked(process: subprocess.Popen[bytes], data: bytes, max_megapixels: float) -> CleanPicture | Refusal | None:
    """What the child makes of the file; None if it ended, or sent no valid response.

    Raises `BrokenPipeError` where it had ended before it took the file, which is read whole before it is decoded.
    """
    assert process.stdin is not None
    _write(process.stdin, REQUEST.pack(len(data), max_megapixels))
    _write(process.stdin, data)
    head = _read(process.stdout, RESPONSE.size)
    if len(head) < RESPONSE.size:
        return None
    told, size = RESPONSE.unpack(head)
    if told > MOST_JSON or size > MOST_BYTES:
        return None
    said, clean = _read(process.stdout, told), _read(process.stdout, size)
    if len(said) < told or len(clean) < size:
        return None
    try:
        return _understood(json.loads(said), clean)
    except (ValueError, KeyError, TypeError):
        return None


def _understood(said: dict[str, object], clean: bytes) -> CleanPicture | Refusal:
    """The response, checked: a hostile file may have taken the child over. Raises ValueError, KeyError, TypeError."""
    if "refused" in said:
        return Refusal(str(said["refused"]))
    kind, width, height, phash = (said[name] for name in ("media_type", "width", "height", "phash"))
    begins = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}[str(kind)]
    if not (isinstance(width, int) and isinstance(height, int) and isinstance(phash, str)):
        raise TypeError("numbers and a hash are missing")
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE and _PHASH.fullmatch(phash)):
        raise ValueError("numbers or hash are out of bounds")
    if not clean.startswith(begins):
        raise ValueError("the picture is not of its type")
    return CleanPicture(clean, str(kind), width, height, phash)


def _write(pipe: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes] | None, size: int) -> bytes:
    """So many bytes, fewer at the end of the pipe."""
    assert pipe is not None
    read = bytearray()
    while len(read) < size and (block := pipe.read(min(size - len(read), 2**20))):
        read += block
    return bytes(read)
