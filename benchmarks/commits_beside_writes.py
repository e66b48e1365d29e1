"""Measure how long the ledger's commits take while another process writes a model to the same disk.

    python -m benchmarks.commits_beside_writes --folder DIR [--gigabytes 4.4]

A child process writes nine files in four threads, as the merge does, and flushes each file, as publishing a model
does: first with all of the flushing left to the end, then with `write_through`. Meanwhile this process repeatedly
commits a row to a database with the ledger's settings, pausing 0.02 s after each. For both ways, twice, the script
prints a JSON object with the seconds for writing and for flushing, the number of commits, how many of them were slow,
how many seconds these took together, and the longest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from storage.atomic_files import sync_file, write_through
from storage.connection import connect

FILES: Final = 9
WEIGHT: Final = 2**25
"""The size of a weight in bytes."""

SLOW: Final = 0.05
"""The seconds from which a commit counts as slow."""


def write(folder: Path, size: int, *, through: bool) -> dict[str, float]:
    """Write `size` bytes to `folder` and flush them; return the seconds of both."""
    weight = os.urandom(WEIGHT)
    put = write_through if through else os.pwrite
    began = time.monotonic()
    files = [folder / str(number) for number in range(FILES)]
    for file in files:
        with file.open("wb") as writer, ThreadPoolExecutor(4) as threads:
            places = range(0, size // FILES, WEIGHT)
            list(threads.map(put, [writer.fileno()] * len(places), [weight] * len(places), places))
    written = time.monotonic()
    for file in files:
        sync_file(file)
    return {"written": round(written - began, 2), "flushed": round(time.monotonic() - written, 2)}


def measure(folder: Path, size: int, *, through: bool) -> dict[str, float]:
    """Commit while a child process writes, and return the measurements."""
    target = folder / "model"
    target.mkdir()
    times: list[float] = []
    line = [sys.executable, "-m", "benchmarks.commits_beside_writes", "--write", str(target)]
    line += ["--gigabytes", str(size / 1e9), *(["--through"] if through else [])]
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
    slow = [each for each in times if each > SLOW]
    found = {"commits": len(times), "slow": len(slow), "in slow": sum(slow), "longest": max(times)}
    return seconds | {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path, help="an existing folder on the disk to measure")
    where.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gigabytes", type=float, default=4.4)
    parser.add_argument("--through", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    if options.write:
        print(json.dumps(write(options.write, size, through=options.through)))
        return
    with TemporaryDirectory(dir=options.folder) as folder:
        for through in (False, True, False, True):
            print(json.dumps({"through": through, **measure(Path(folder), size, through=through)}), flush=True)
            time.sleep(2)


if __name__ == "__main__":
    main()
