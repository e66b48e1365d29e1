"""Writing large files to disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.atomic_files import PIECE, copy_through, write_through


def test_large_data_is_flushed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one piece of the data is left for the flush that follows, and the file has all of it."""
    unflushed, most = 0, 0
    real_write, real_flush = os.pwrite, os.fdatasync

    def pwrite(descriptor: int, data: memoryview, place: int) -> int:
        nonlocal unflushed, most
        # A system may write less than it was asked to.
        written = real_write(descriptor, data[: max(1000, len(data) // 2)], place)
        unflushed += written
        most = max(most, unflushed)
        return written

    def fdatasync(descriptor: int) -> None:
        nonlocal unflushed
        real_flush(descriptor)
        unflushed = 0

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    data = os.urandom(3 * PIECE + 5)
    with (tmp_path / "file").open("wb") as file:
        write_through(file.fileno(), data, 0)
    assert (tmp_path / "file").read_bytes() == data
    assert most <= PIECE
    assert unflushed < PIECE


def test_a_copy_has_the_mode_and_times_of_the_original(tmp_path: Path) -> None:
    """A file of more than one piece is copied whole, and keeps its mode and the time of its modification."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(PIECE + 5))
    source.chmod(0o640)
    os.utime(source, (1, 1))
    copy_through(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert (target.stat().st_mode, target.stat().st_mtime_ns) == (source.stat().st_mode, source.stat().st_mtime_ns)
