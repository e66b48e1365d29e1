"""A Python interpreter with torch, transformers and XTuner preloaded, shared by all test processes.

It is a program that accepts `-m MODULE ARGUMENTS`: set it as `inference.python` or `training.python`. Tests of
startup itself use the real interpreter.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final, Self

from filelock import FileLock

from inference.engines.commands import PRELOADED as ENGINES
from inference.engines.commands import Kind
from inference.process import fork_client
from training.launcher import PRELOADED as WORKERS

# What torchrun starts, is started by the same program.
PROGRAM: Final = '#!/bin/sh\nPYTHON_EXEC="$0" exec "{python}" -IS "{client}" "{address}" "$@"\n'


class WarmPython:
    """A handle on the fork server; the server and its workers end when the last test process with a handle ends."""

    def __init__(self, lifeline: int, program: Path) -> None:
        self._lifeline = lifeline
        self.program = program

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start the fork server, or share the one that already runs in `folder`.

        Use the `program` attribute of the result as the interpreter in the settings.
        """
        address, program, lifeline = folder / "warm.socket", folder / "warm_python", folder / "warm.lifeline"
        with FileLock(folder / "warm.lock"):
            if not lifeline.exists():
                os.mkfifo(lifeline)
            held = os.open(lifeline, os.O_RDWR)
            if not _serves(address):
                address.unlink(missing_ok=True)
                program.write_text(PROGRAM.format(python=sys.executable, client=fork_client.__file__, address=address))
                program.chmod(0o755)
                _start(lifeline, address, {"HF_MODULES_CACHE": str(folder / "modules")})
        return cls(held, program)

    def stop(self) -> None:
        """Release the fork server; it ends when no other test process uses it."""
        os.close(self._lifeline)


def _serves(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(address)) == 0


def _start(lifeline: Path, address: Path, environment: dict[str, str]) -> None:
    """Start the fork server, and return once it accepts connections.

    Nothing waits for its end, since other processes may need it longer.
    """
    stdin = os.open(lifeline, os.O_RDONLY)
    ready, stdout = os.pipe()
    words = [str(address), "0", *WORKERS, *ENGINES[Kind.CPU]]
    line = [sys.executable, "-m", "inference.process.fork_server", *words]
    streams = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    os.posix_spawn(sys.executable, line, {**os.environ, "OMP_NUM_THREADS": "1", **environment}, file_actions=streams)
    os.close(stdin)
    os.close(stdout)
    assert os.read(ready, 1), "it did not start"
    os.close(ready)
