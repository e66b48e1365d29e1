"""A Python interpreter with torch, transformers and XTuner preloaded, for tests that start many workers.

Importing these libraries costs each engine and each training run six to eight seconds of processor time.
Here, one process imports the libraries and then forks the workers. `WarmPython.start` writes a program
that accepts `-m MODULE ARGUMENTS`; set it as `inference.python` or `training.python`. The program passes
its standard streams, environment and working directory to the forking process, forwards signals to the
worker, and ends with the worker's exit status or signal. When the program is killed, so is the worker.

Tests of startup itself use the real interpreter.
"""

from __future__ import annotations

import array
import gc
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, Self, cast

from filelock import FileLock

from inference.process.yapf_import import import_yapf

PRELOADED: Final = (
    "inference.engines.cpu.engine",
    "inference.engines.cpu.http_api",
    "torch.utils.tensorboard",
    "training.data.mixture",
    "training.gate.prompt_parity",
    "training.gate.run_comparison_sheet",
    "training.gate.local_model",
    "training.plots",
    "training.xtuner.dataset",
    "training.xtuner.internvl_model",
    "training.xtuner.runner",
)
"""The modules that the workers import, but not those of the workers themselves, which run as `__main__`."""
PROGRAM: Final = """#!{python} -IS
import array, json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(asked)
    worker = int.from_bytes(server.recv(4), "big") or sys.exit("the forking process is gone")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(worker, number))
    for stream in streams:
        os.close(stream)
    ended = server.recv(4) or sys.exit(1)
status = int.from_bytes(ended, "big")
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


class WarmPython:
    """A handle to the process that preloads the libraries and forks the workers.

    The forking process and its workers end when the last test process that holds a handle ends.
    """

    def __init__(self, lifeline: int, program: Path) -> None:
        self._lifeline = lifeline
        self.program = program

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start the forking process, or share the one that already runs in `folder`.

        Use the `program` attribute of the result as the interpreter in the settings.
        """
        address, program, lifeline = folder / "warm.socket", folder / "warm_python", folder / "warm.lifeline"
        with FileLock(folder / "warm.lock"):
            if not lifeline.exists():
                os.mkfifo(lifeline)
            held = os.open(lifeline, os.O_RDWR)
            if not _serves(address):
                address.unlink(missing_ok=True)
                program.write_text(PROGRAM.format(python=sys.executable, address=str(address)))
                program.chmod(0o755)
                _start(lifeline, [str(address), str(program)], {"HF_MODULES_CACHE": str(folder / "modules")})
        return cls(held, program)

    def stop(self) -> None:
        """Release the forking process; it ends when no other test process uses it."""
        os.close(self._lifeline)


def _serves(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(address)) == 0


def _start(lifeline: Path, words: list[str], environment: dict[str, str]) -> None:
    """Start the forking process, and return once it accepts connections.

    The forking process is not awaited, since other processes may need it longer.
    """
    stdin = os.open(lifeline, os.O_RDONLY)
    ready, stdout = os.pipe()
    line = [sys.executable, "-m", "tests.support.warm_python", *words]
    streams = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    os.posix_spawn(sys.executable, line, {**os.environ, "OMP_NUM_THREADS": "1", **environment}, file_actions=streams)
    os.close(stdin)
    os.close(stdout)
    assert os.read(ready, 1), "it did not start"
    os.close(ready)


class Server:
    """A server that forks a worker for each connection.

    Over the connection, the server sends the worker's process ID and, when the worker ends, its exit status.
    """

    def __init__(self, address: str, program: str) -> None:
        self._program = program
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._workers: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Serve requests until standard input reaches its end, then kill the workers and exit."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (self._listener, woken, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)
        sys.stdout.write("!")
        sys.stdout.flush()
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            if sys.stdin in ready:
                for worker in self._workers:
                    _kill(worker)
                os._exit(0)  # freeing the imported modules takes seconds
            if woken in ready:
                woken.recv(1024)
                self._reap()
            if self._listener in ready:
                self._fork()
            for worker, connection in self._workers.items():
                if connection in ready:  # the program sends nothing more, so it was killed
                    self._selector.unregister(connection)
                    _kill(worker)

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        streams = array.array("i")
        try:
            length, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * 4))
            if ancillary:
                streams.frombytes(ancillary[0][2])
            request = _received(connection, int.from_bytes(length, "big"))
        except OSError:
            request = b""
        if not request:  # the program was killed, or `_serves` only checked the address
            for stream in streams:
                os.close(stream)
            connection.close()
            return
        worker = os.fork()
        if worker == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for other in (self._listener, connection, *self._workers.values()):
                other.close()
            words, environment, folder = json.loads(request)
            # torchrun starts its processes with the same program.
            _work(streams, words, {**environment, "PYTHON_EXEC": self._program}, folder)
        for stream in streams:
            os.close(stream)
        self._workers[worker] = connection
        self._selector.register(connection, selectors.EVENT_READ)  # readable at once if the program was killed
        with suppress(BrokenPipeError):
            connection.sendall(worker.to_bytes(4, "big"))

    def _reap(self) -> None:
        while self._workers:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                return
            with self._workers.pop(worker) as connection, suppress(KeyError, BrokenPipeError):
                self._selector.unregister(connection)  # KeyError: the program was killed earlier
                connection.sendall(status.to_bytes(4, "big"))


def _received(connection: socket.socket, length: int) -> bytes:
    """Return the `length` bytes of a request, or empty bytes if the connection closes too early."""
    request = b""
    while len(request) < length:
        part = connection.recv(65536)
        if not part:
            return b""
        request += part
    return request


def _kill(worker: int) -> None:
    try:
        os.killpg(worker, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(worker, signal.SIGKILL)  # it is not a group leader yet


def _work(streams: array.array[int], words: list[str], environment: dict[str, str], folder: str) -> None:
    """Turn this process into a worker: run `words` (`-m MODULE ARGUMENTS`) in directory `folder`, then exit."""
    os.setsid()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    cast(TextIOWrapper, sys.stdout).reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()
    words = words[words.index("-m") + 1 :]
    sys.argv = words
    code: Any = 1
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):  # the reason
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:  # noqa: BLE001 - the outermost frame of the process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Import the preloaded modules, then serve requests for workers."""
    gc.disable()
    import_yapf()
    for name in PRELOADED:
        __import__(name)
    gc.freeze()  # the workers' garbage collectors need not scan the imported modules
    gc.enable()
    Server(*sys.argv[1:]).serve()


if __name__ == "__main__":
    main()
