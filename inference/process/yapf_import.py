"""The import of yapf, which mmengine needs, in processes that start at the same time."""

from __future__ import annotations

import os
from contextlib import suppress


def import_yapf() -> None:
    """Import yapf without its cache; call this before the first import of mmengine, XTuner or lmdeploy.

    yapf 0.43.0 pickles its grammars into the user's cache directory in place. A process that starts while another one
    writes them, or any process after a kill in the middle, reads half a file and fails with `EOFError: Ran out of
    input`. With a cache directory that cannot exist, it computes the grammars in 10 ms and ignores the failed write.
    Does nothing if yapf is not installed.
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
