"""Every row of a LLaVA file, held against all that would mistrain in silence, by as many processes as there are cores.

A good row comes back as it will be trained: a line of JSON with its pictures' sizes, its length in tokens and where it
came from. Of a bad one comes back what is wrong with it, and the next one is looked at: whoever mends a file wants to
know of all of them. What follows from a bad row is the caller's. Needs transformers.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Self

from inference.images.decoder import PictureDecoder
from inference.messages import PictureError
from training.data.image_index import Look, PictureNotes
from training.data.llava import Lesson, RowError, parse_row, read_rows, row
from training.data.source_pictures import Cleaner
from training.job import TrainingError
from training.xtuner.encoding import Encoder, TooLong

FOREIGN: Final = "source "
"""What the names of rows of sources begin with: another bot's export has rows that are called as ours are, and ours go
by their names when somebody is forgotten."""

_CHUNK: Final = 64
_AHEAD: Final = 4
_FEW: Final = 1000
"""So many rows are checked before other processes have started, which takes each of them some seconds."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What rows are checked by. Paths are of directories; `notes` is a file; `tiles` 0 means as the checkpoint says.

    With `clean` each picture is re-encoded into `home` by a decoder process, and what is checked is the clean one.
    Without it pictures are decoded in the worker that checks: they are the operator's own, or clean already.

    `system` is the persona of rows that name none. Where the pictures lie in `home` they keep their names, elsewhere
    each is named by its whole path.
    """

    base: Path
    home: Path
    notes: Path | None
    system: str
    tiles: int
    max_length: int
    clean: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """A good row as a line of JSON, its length in tokens, its pictures in order, and whether it has a persona.

    `pictures` are their names in the line, `digests` the sha256 of their bytes, or of the clean ones.
    """

    line: str
    length: int
    pictures: tuple[str, ...]
    digests: tuple[str, ...]
    persona: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """What is wrong with a row, `why` as a sentence that names file and row. `too_long`: it has too many tokens, and is
    good otherwise.
    """

    why: str
    too_long: bool


@dataclass(frozen=True, slots=True)
class Raw:
    """A row to be checked: its file, its number there, the folder of its pictures, and its content."""

    file: Path
    number: int
    images: Path
    content: Any


class Checker:
    """Checks rows in this process."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._encoder = Encoder(rules.base, tiles=rules.tiles)
        self._decoder = PictureDecoder() if rules.clean else None
        cleaner = None if self._decoder is None else Cleaner(rules.home, self._decoder)
        self.notes = PictureNotes(rules.notes, cleaner)

    def close(self) -> None:
        """End the decoder process."""
        if self._decoder is not None:
            self._decoder.close()

    def check(self, raw: Raw) -> Checked | Refused:
        """The good row, or what is wrong with it."""
        where = f"{raw.file} row {raw.number}"
        try:
            read = parse_row(raw.content, where=where, system=self._rules.system)
            if not self._ours(raw):
                read = replace(read, name=FOREIGN + read.name)
            lesson, digests = self._seen(read, raw, where)
            encoded = self._encoder.check(lesson, self._rules.max_length, where=where)
        except RowError as error:
            return Refused(str(error), isinstance(error, TooLong))
        file_of: Callable[[str], str] = str if self._ours(raw) else lambda name: str(raw.images / name)
        length = len(encoded.input_ids)
        line = json.dumps({**row(lesson, file_of), "length": length, "origin": where}, ensure_ascii=False)
        return Checked(line, length, tuple(map(file_of, lesson.pictures)), digests, "system" in raw.content)

    def _ours(self, raw: Raw) -> bool:
        return raw.images == self._rules.home

    def _seen(self, lesson: Lesson, raw: Raw, where: str) -> tuple[Lesson, tuple[str, ...]]:
        """The lesson with the sizes of its pictures, and their digests. Raises `RowError`."""
        looks: list[Look] = []
        for name in lesson.pictures:
            path = raw.images / name
            try:
                if not self._ours(raw):
                    _check_place(path, raw.images)
                # What people sent must leave no trace here when it is deleted, and is little.
                looks.append(self.notes.look(path, note=not self._ours(raw)))
            except FileNotFoundError as error:
                raise RowError(f"{where}: the picture {path} is missing: restore it, or leave the row out") from error
            except (OSError, ValueError, PictureError) as error:
                raise RowError(f"{where}: the picture {path}: {error}") from error
        return replace(lesson, sizes=tuple((each.width, each.height) for each in looks)), tuple(
            each.sha256 for each in looks
        )


def _check_place(file: Path, folder: Path) -> None:
    """Raise ValueError unless it is a regular file inside the folder, wherever links lead; OSError if it is missing.

    A file of rows comes from anybody, and an import copies what it names. A pipe would be read for ever.
    """
    real = Path(os.path.realpath(file, strict=True))  # Path.resolve has an error of its own for links in a circle
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"it does not lie in {folder}: copy it there, or name another folder of pictures")
    if not real.is_file():
        raise ValueError("it is no regular file")


class Inspection:
    """Checks whole files, the first rows here and the others in processes of their own. A context manager."""

    def __init__(self, rules: Rules, processes: int) -> None:
        """`processes` is how many check at once, this one included."""
        self._rules = rules
        self._processes = processes
        self._here = Checker(rules)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def rows(self, file: Path, images: Path, say: Callable[[int, int], None]) -> Iterator[Checked | Refused]:
        """Each row of the file in order, good or bad. `say` gets (rows done, rows in all) now and then.

        Raises `RowError` for a file that cannot be read at all.
        """
        rows: Iterator[Raw] = (Raw(file, number, images, content) for number, content in read_rows(file))
        total = 0
        if file.suffix == ".jsonl":
            with suppress(OSError), file.open("rb") as lines:
                total = sum(1 for line in lines if line.strip())
        else:
            every = list(rows)
            rows, total = iter(every), len(every)
        done = 0
        for chunk in chain(self._few(rows), self._many(rows)):
            yield from chunk
            done += len(chunk)
            say(done, total)

    def _few(self, rows: Iterator[Raw]) -> Iterator[list[Checked | Refused]]:
        for chunk in _chunks(rows if self._processes == 1 else islice(rows, _FEW)):
            found = [self._here.check(raw) for raw in chunk]
            self._here.notes.keep(self._here.notes.fresh())
            yield found

    def _many(self, rows: Iterator[Raw]) -> Iterator[list[Checked | Refused]]:
        waiting: deque[Future[tuple[list[Checked | Refused], dict[str, Look]]]] = deque()
        for chunk in _chunks(rows):
            if self._pool is None:
                # Not forked: the parent has threads, and on a GPU machine it has asked for CUDA.
                self._pool = ProcessPoolExecutor(self._processes, get_context("spawn"), _begin, (self._rules,))
            waiting.append(self._pool.submit(_check, chunk))
            if len(waiting) > _AHEAD * self._processes:
                yield self._came(waiting.popleft())
        while waiting:
            yield self._came(waiting.popleft())

    def _came(self, future: Future[tuple[list[Checked | Refused], dict[str, Look]]]) -> list[Checked | Refused]:
        try:
            found, fresh = future.result()
        except BrokenProcessPool as error:
            raise TrainingError("a process that checks rows was killed, often for want of memory: try again") from error
        self._here.notes.keep(fresh)
        return found


def _chunks(rows: Iterable[Raw]) -> Iterator[list[Raw]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


_checker: Checker
"""The one checker of a process of the pool."""


def _begin(rules: Rules) -> None:
    global _checker
    _checker = Checker(rules)


def _check(chunk: list[Raw]) -> tuple[list[Checked | Refused], dict[str, Look]]:
    found = [_checker.check(raw) for raw in chunk]
    return found, _checker.notes.fresh()
