"""Ends a worker when its parent process ends.

The worker's standard input is a pipe whose write end the parent holds and never writes to. However the parent ends,
`kill -9` included, the kernel closes that end, and the worker reads end-of-file. A worker started by hand, with a
terminal, a file or /dev/null as standard input, is not watched. Standard library only.
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
    """End this process when its standard input, a pipe or socket, reaches end-of-file.

    The process gets SIGTERM first. After `grace` seconds it is killed, together with its process group if it leads one
    (as it does if its parent started it in a new session).

    Returns:
        Whether standard input is a pipe or socket, so that it is watched.
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
