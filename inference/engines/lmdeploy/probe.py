"""Worker: test whether TurboMind can be imported, in a separate process because the import may crash.

    python -m inference.engines.lmdeploy.probe

The worker prints one line of JSON::

    {"lmdeploy": "0.18.0", "torch": "2.12.1+cu130", "cuda": "13.0", "error": ""}

The worker imports the same modules as the engine, in the same order. The value of `error` is the
loader's message, for example about a missing shared library.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version


def probe() -> dict[str, str]:
    """Return the installed versions of lmdeploy, torch and CUDA, and the first import error."""
    found = {"lmdeploy": "", "torch": "", "cuda": "", "error": ""}
    try:
        found["lmdeploy"] = version("lmdeploy")
        import torch

        found["torch"] = torch.__version__
        found["cuda"] = torch.version.cuda or ""
        import lmdeploy.turbomind as turbomind

        # lmdeploy catches this error, and the engine would fail later with another one.
        found["error"] = str(turbomind._import_error or "")
    except PackageNotFoundError as error:
        found["error"] = f"{error.name} is not installed"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
