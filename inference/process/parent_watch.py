"""Termination of a worker when its parent process ends.

The worker's standard input is a pipe; the parent holds the write end and never writes to it. However the
parent ends, even by `kill -9`, the kernel closes the write end, and the worker reads end-of-file. A
worker started by hand, whose standard input is a terminal, a file or /dev/null, does not watch its
parent. This module uses only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time

_GRACE_SECONDS = 1.0


def watch_parent(grace: float = _GRACE_SECONDS) -> bool:
    """Start a thread that ends this process when standard input (a pipe or socket) reaches end-of-file.

    The process is first sent SIGTERM and then, after `grace` seconds, killed, along with its process group
    if it leads one (as it does if its parent started it in a new session).

    Returns:
        Whether standard input is a pipe or socket and is therefore watched.
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    threading.Thread(target=_watch, args=(grace,), name="parent-watch", daemon=True).start()
    return True


def _watch(grace: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
