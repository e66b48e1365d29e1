"""Validate every row of a LLaVA file, in as many processes as there are cores.

A valid row is returned in the form in which it will be trained on: a line of JSON with the sizes of its
pictures, its length in tokens and its origin. An invalid row is returned with the reason why it is
invalid, and validation continues, so that a report can name all invalid rows. This module requires
transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Self

from inference.images.decoder import PictureDecoder
from inference.messages import PictureError
from training.bounded_map import bounded_map
from training.data.image_index import ImageIndex, ImageInfo
from training.data.llava import Lesson, row
from training.data.row_parser import RowError, parse_row, read_rows
from training.data.source_pictures import write_clean
from training.job import TrainingError
from training.xtuner.encoding import Encoder

FOREIGN: Final = "source "
"""The prefix of the names of rows from sources. Rows exported by another bot have the same names as ours, and erasure
finds our rows by name."""

_CHUNK: Final = 64
_AHEAD: Final = 4
_ROWS_HERE: Final = 1000
"""The number of rows validated in this process first, because the other processes take some seconds to start."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for validating rows.

    Attributes:
        base: The checkpoint whose tokenizer counts tokens.
        home: The folder of users' pictures, or of an import's pictures. Pictures elsewhere are named by
            their absolute paths.
        index: The file of the `ImageIndex`; None to keep the index in memory.
        system: The system prompt for rows without one.
        tiles: The maximum number of tiles per picture; 0 for the checkpoint's own limit.
        max_length: The maximum number of tokens per row.
        clean: Whether a decoder process re-encodes each picture into `home` before the picture is validated.
            Otherwise, the worker itself decodes the pictures, which come from the operator or are already
            re-encoded.
    """

    base: Path
    home: Path
    index: Path | None
    system: str
    tiles: int
    max_length: int
    clean: bool = False


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A valid row.

    Attributes:
        line: The row as a line of JSON.
        length: The number of tokens in the row.
        pictures: The names of the pictures in `line`, in order.
        digests: The sha256 of each picture's bytes or, if the picture was re-encoded, of the new bytes.
        has_system: Whether the row has its own system prompt.
        liked: Whether the row's answer is liked.
    """

    line: str
    length: int
    pictures: tuple[str, ...]
    digests: tuple[str, ...]
    has_system: bool
    liked: bool


_ChunkResult = tuple[list[ValidRow | RowError], dict[str, ImageInfo]]
"""The results of a chunk of rows, and the new entries of the image index."""


class RowValidator:
    """A validator of rows that works in the current process."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._encoder = Encoder(rules.base, tiles=rules.tiles)
        self._decoder = PictureDecoder() if rules.clean else None
        clean = None if self._decoder is None else partial(write_clean, rules.home, self._decoder)
        self.index = ImageIndex(rules.index, clean)

    def close(self) -> None:
        """Stop the decoder process, if there is one."""
        if self._decoder is not None:
            self._decoder.close()

    def validate(self, file: Path, images: Path, rows: Iterable[tuple[int, Any]]) -> _ChunkResult:
        """Validate the numbered rows of `file`, which refer to pictures in the folder `images`."""
        results: list[ValidRow | RowError] = []
        for number, content in rows:
            try:
                results.append(self._valid_row(content, images, f"{file} row {number}"))
            except RowError as error:
                results.append(type(error)(*error.args))  # its traceback and cause would keep the picture in memory
        return results, self.index.take_new()

    def _valid_row(self, content: Any, images: Path, where: str) -> ValidRow:
        """Return the row in the form used for training.

        Raises:
            RowError: The row is invalid.
        """
        lesson = parse_row(content, where=where, system=self._rules.system)
        if not self._is_home(images):
            if not lesson.liked:
                raise RowError(f"{where}: a source cannot have disliked answers: leave the row out")
            lesson = replace(lesson, name=FOREIGN + lesson.name)
        lesson, digests = self._with_pictures(lesson, images, where)
        length = self._length(lesson, where)
        file_of: Callable[[str], str] = str if self._is_home(images) else lambda name: str(images / name)
        line = json.dumps({**row(lesson, file_of), "length": length, "origin": where}, ensure_ascii=False)
        names = tuple(map(file_of, lesson.pictures))
        return ValidRow(line, length, names, digests, "system" in content, lesson.liked)

    def _length(self, lesson: Lesson, where: str) -> int:
        """Return the number of tokens in a lesson, counted with the longer answer if there are two.

        Raises:
            RowError: The lesson has too many tokens or cannot be trained on.
        """
        answers = [lesson] if lesson.rejected is None else [lesson, lesson.answered(lesson.rejected.text)]
        return max(len(self._encoder.check(each, self._rules.max_length, where=where).input_ids) for each in answers)

    def _is_home(self, images: Path) -> bool:
        return images == self._rules.home

    def _with_pictures(self, lesson: Lesson, images: Path, where: str) -> tuple[Lesson, tuple[str, ...]]:
        """Return the lesson with the sizes of its pictures set, and the digests of the pictures.

        Raises:
            RowError: A picture is missing, broken or outside the picture folder.
        """
        found: list[ImageInfo] = []
        for name in lesson.pictures:
            path = images / name
            try:
                if not self._is_home(images):
                    _check_location(path, images)
                # Users' pictures are not indexed: they are few, and their erasure must leave no trace.
                found.append(self.index.get(path, add=not self._is_home(images)))
            except FileNotFoundError as error:
                raise RowError(f"{where}: the picture {path} is missing: restore it, or leave the row out") from error
            except (OSError, ValueError, PictureError) as error:
                raise RowError(f"{where}: the picture {path}: {error}") from error
        sizes = tuple((each.width, each.height) for each in found)
        return replace(lesson, sizes=sizes), tuple(each.sha256 for each in found)


def _check_location(file: Path, folder: Path) -> None:
    """Check that `file`, after following links, is a regular file inside `folder`.

    A file of rows may come from an untrusted source, and an import copies the files named in it. Reading a
    named pipe could block forever.

    Raises:
        ValueError: The path is outside the folder or is not a regular file.
        OSError: The file is missing.
    """
    real = Path(os.path.realpath(file, strict=True))  # Path.resolve raises RuntimeError for a loop of links
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"it is outside {folder}: copy it there, or name another picture folder")
    if not real.is_file():
        raise ValueError("it is not a regular file")


class Validator:
    """A context manager that validates files: their first rows in the current process, the rest in a process pool."""

    def __init__(self, rules: Rules, processes: int) -> None:
        """Prepare a pool of `processes` processes; with one, all rows are validated in the current process."""
        self._rules = rules
        self._processes = processes
        self._here = RowValidator(rules)
        # Spawned rather than forked, because this process has threads and, on a GPU machine, has initialized CUDA.
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _initialize, (rules,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._pool.shutdown(cancel_futures=True)

    def rows(self, file: Path, images: Path, say: Callable[[int, int], None]) -> Iterator[ValidRow | RowError]:
        """Yield the result for each row, in order.

        `say` is called after each chunk with the number of validated rows and the total number of rows.

        Raises:
            RowError: The file cannot be read.
        """
        rows, total = read_rows(file), 0
        if file.suffix == ".jsonl":
            with suppress(OSError), file.open("rb") as lines:
                total = sum(1 for line in lines if line.strip())
        else:
            every = list(rows)
            rows, total = iter(every), len(every)
        first = rows if self._processes == 1 else islice(rows, _ROWS_HERE)
        here = map(partial(self._here.validate, file, images), _chunks(first))
        others = bounded_map(self._pool, partial(_validate, file, images), _chunks(rows), _AHEAD * self._processes)
        done = 0
        try:
            for results, new in chain(here, others):
                self._here.index.write(new)
                yield from results
                done += len(results)
                say(done, total)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that validates rows was killed, possibly because memory ran out: try again"
            ) from error


def _chunks(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


_validator: RowValidator
"""The validator in each process of the pool."""


def _initialize(rules: Rules) -> None:
    global _validator
    _validator = RowValidator(rules)


def _validate(file: Path, images: Path, rows: list[tuple[int, Any]]) -> _ChunkResult:
    return _validator.validate(file, images, rows)
