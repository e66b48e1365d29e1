"""Measure how long the ledger's commits take while another process writes a model to the same disk.

    python -m benchmarks.commits_beside_writes --folder DIR [--gigabytes 4.4]

A child process writes nine files as the merge does, in four threads and in pieces of 32 MB, and flushes each file, as
publishing a model does: first with all of the writing left to the flush, then with `start_writing_back` after each
piece. Meanwhile this process commits a small row fifty times a second to a database with the ledger's settings. For
both ways, the script prints a JSON object with the seconds for writing and for flushing, and the median and the
longest time of a commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

from storage.atomic_files import start_writing_back, sync_file
from storage.connection import connect

FILES: Final = 9
PIECE: Final = 2**25


def write(folder: Path, size: int, *, early: bool) -> dict[str, float]:
    """Write `size` bytes to `folder` and flush them; return the seconds of both."""
    piece = os.urandom(PIECE)
    began = time.monotonic()
    files = [folder / str(number) for number in range(FILES)]
    for file in files:
        with file.open("wb") as writer, ThreadPoolExecutor(4) as threads:

            def put(place: int, descriptor: int = writer.fileno()) -> None:
                os.pwrite(descriptor, piece, place)
                if early:
                    start_writing_back(descriptor, place, PIECE)

            list(threads.map(put, range(0, size // FILES, PIECE)))
    written = time.monotonic()
    for file in files:
        sync_file(file)
    return {"written": round(written - began, 2), "flushed": round(time.monotonic() - written, 2)}


def measure(folder: Path, size: int, *, early: bool) -> dict[str, float]:
    """Commit while a child process writes, and return the measurements."""
    target = folder / "model"
    target.mkdir()
    times: list[float] = []
    line = [sys.executable, "-m", "benchmarks.commits_beside_writes", "--write", str(target)]
    line += ["--gigabytes", str(size / 1e9), *(["--early"] if early else [])]
    with closing(connect(folder / "ledger.db")) as database:
        database.execute("CREATE TABLE IF NOT EXISTS rows (text TEXT)")
        child = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        while child.poll() is None:
            began = time.monotonic()
            database.execute("INSERT INTO rows VALUES (?)", ("x" * 500,))
            times.append(time.monotonic() - began)
            time.sleep(0.02)
    shutil.rmtree(target)
    assert child.stdout is not None
    seconds: dict[str, float] = json.loads(child.stdout.read())
    milliseconds = {"median": 1000 * statistics.median(times), "longest": 1000 * max(times)}
    return seconds | {f"{name} ms": round(value, 1) for name, value in milliseconds.items()}


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    where.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gigabytes", type=float, default=4.4)
    parser.add_argument("--early", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    if options.write:
        print(json.dumps(write(options.write, size, early=options.early)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    for early in (False, True, False, True):
        print(json.dumps({"early": early, **measure(options.folder, size, early=early)}), flush=True)
        time.sleep(2)


if __name__ == "__main__":
    main()
