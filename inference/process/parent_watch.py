"""A worker's lifeline: it ends when the process that started it is gone.

The parent holds the write end of a pipe that is the worker's standard input and never writes. However the parent
ends, `kill -9` included, the kernel closes its end, and the worker reads the end of the file. What a worker does
with its standard output, and how a parent starts one, is left to others. Standard library only.

Run by hand, a worker is not bound: a terminal, a file or /dev/null as standard input is no lifeline.
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
    """End this process when its standard input, a pipe or socket, reaches its end. Returns whether it watches.

    First SIGTERM, so that what listens to it may finish; `grace` seconds later whatever is left is killed, and
    with it the children in its process group where the worker leads one (as it does when its parent started it
    in a new session).
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    threading.Thread(target=_watch, args=(grace,), name="lifeline", daemon=True).start()
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
