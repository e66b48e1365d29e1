"""Safe import of yapf (a dependency of mmengine) in processes that start at the same time."""

from __future__ import annotations

import os
from contextlib import suppress


def import_yapf() -> None:
    """Import yapf without its cache; call this function before mmengine, XTuner or lmdeploy is first imported.

    yapf 0.43.0 pickles its grammars directly into the user's cache directory. If another process is writing
    a grammar, or was killed while writing it, yapf reads half a file and fails with
    `EOFError: Ran out of input`. This function sets a cache directory that cannot exist, so that yapf
    recomputes the grammars, which takes 10 ms, and ignores the failed write. If yapf is not
    installed, nothing happens.
    """
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = os.devnull
    try:
        with suppress(ImportError):
            import yapf  # noqa: F401
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
