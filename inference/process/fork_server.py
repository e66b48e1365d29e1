"""Process that imports libraries once and forks workers, which therefore start at once.

    python -m inference.process.fork_server ADDRESS IDLE MODULE...

Importing torch, transformers and XTuner takes a worker six to eight seconds of processor time. This process
imports the modules, writes a line to standard output, and accepts requests from `fork_client` on a Unix socket. It ends
after `IDLE` seconds without a worker (0: never), and, together with its workers, at the end of standard input. It must
not initialize CUDA, which a forked process cannot use.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import TextIOWrapper
from typing import Any, Final, cast

from inference.process.fork_client import READY
from inference.process.yapf_import import import_yapf

_NOT_INITIALISED: Final = 3
"""CUDA_ERROR_NOT_INITIALIZED of the CUDA driver API."""


class ForkServer:
    """A server that forks a worker for each connection.

    Over the connection, the server sends the worker's process ID and, when the worker ends, its exit status.
    """

    def __init__(self, address: str, idle: float) -> None:
        self._idle = idle
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._workers: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Serve requests until the server is idle for too long, or standard input reaches its end; then exit."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        self._listener.listen(64)
        for source in (self._listener, woken, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        while True:
            limit = None if self._workers else self._idle or None
            ready = [key.fileobj for key, _ in self._selector.select(limit)]
            if sys.stdin in ready or not ready:
                self._end()
            if woken in ready:
                woken.recv(1024)
                self._reap()
            if self._listener in ready:
                self._fork()
            for worker, connection in self._workers.items():
                if connection in ready:  # the client sends nothing more, so this is the end of the connection
                    self._selector.unregister(connection)
                    _kill(worker)

    def _end(self) -> None:
        """Kill the workers, and exit without freeing the imported modules, because that takes seconds."""
        for worker in self._workers:
            _kill(worker)
        os._exit(0)

    def _fork(self) -> None:
        """Fork a worker for the next client. A client that gets no process ID becomes the worker itself."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many open files, or the client has gone
            return
        streams = array.array("i")
        try:
            length, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * 4))
            if ancillary:
                streams.frombytes(ancillary[0][2])
            size = int.from_bytes(length, "big")
            with connection.makefile("rb") as received:
                request = received.read(size)
            worker = os.fork() if size and len(request) == size else -1
        except OSError:  # the client has gone, or there is no room for another process
            worker = -1
        if worker == -1:
            for stream in streams:
                os.close(stream)
            connection.close()
            return
        if worker == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._selector.close()
            for other in (self._listener, connection, *self._workers.values()):
                other.close()
            _work(streams, *json.loads(request))
        for stream in streams:
            os.close(stream)
        self._workers[worker] = connection
        self._selector.register(connection, selectors.EVENT_READ)  # readable at once if the client was killed
        with suppress(OSError):  # the client was killed
            connection.sendall(worker.to_bytes(4, "big"))

    def _reap(self) -> None:
        while self._workers:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(worker, signal.SIGKILL)  # what the worker started must not outlive it
            with self._workers.pop(worker) as connection, suppress(KeyError, OSError):
                self._selector.unregister(connection)  # KeyError: the client was killed before
                connection.sendall(status.to_bytes(4, "big"))


def _kill(worker: int) -> None:
    try:
        os.killpg(worker, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(worker, signal.SIGKILL)  # it does not lead its group yet


def _work(streams: array.array[int], words: list[str], environment: dict[str, str], folder: str) -> None:
    """Turn this process into a worker: run `words` (`-m MODULE ARGUMENTS`) in directory `folder`, then exit.

    The worker ends without Python's finalization, so it must close its files itself.
    """
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
        if not isinstance(code, int):  # sys.exit was called with a message
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:  # noqa: BLE001 - the top level of the process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload(modules: list[str]) -> None:
    """Import the modules. If one cannot be imported, the worker that needs it reports the error."""
    gc.disable()
    import_yapf()
    with _capabilities_from_driver() if shutil.which("nvidia-smi") else nullcontext():
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - a library may raise any exception
                traceback.print_exc()
    if _cuda_is_initialized():
        sys.exit("a library has initialized CUDA on import, so no worker can be forked")
    gc.freeze()  # the workers' garbage collector need not look through what is imported here
    gc.enable()


@contextmanager
def _capabilities_from_driver() -> Iterator[None]:
    """Make torch return the lowest compute capability of the GPUs without initializing CUDA.

    bitsandbytes asks for it on import, to choose its compiled library.
    """
    import torch

    line = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = subprocess.run(line, capture_output=True, text=True, check=False).stdout.split()
    lowest = min((tuple(map(int, each.split("."))) for each in found), default=(0, 0))
    original = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: (lowest[0], lowest[1])
    try:
        yield
    finally:
        torch.cuda.get_device_capability = original


def _cuda_is_initialized() -> bool:
    """Return whether this process has initialized CUDA; until then, the driver's functions return an error."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALISED)


if __name__ == "__main__":
    server = ForkServer(sys.argv[1], float(sys.argv[2]))  # first, so that a bad address fails before the slow imports
    preload(sys.argv[3:])
    server.serve()
