"""Worker: does TurboMind load here? Says so as one line of JSON, in a process that may die of it.

    python -m inference.engines.lmdeploy.probe

The line: `{"lmdeploy": "0.18.0", "torch": "2.12.1+cu130", "cuda": "13.0", "error": ""}`; a library that is missing is
named in `error` as the loader names it. Imports what the engine imports, in its order.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version


def probe() -> dict[str, str]:
    """What is there, and the first error on the way to TurboMind."""
    found = {"lmdeploy": "", "torch": "", "cuda": "", "error": ""}
    try:
        found["lmdeploy"] = version("lmdeploy")
        import torch

        found["torch"] = torch.__version__
        found["cuda"] = torch.version.cuda or ""
        import lmdeploy.turbomind as turbomind

        # lmdeploy goes on without it, and the engine fails later in other words.
        found["error"] = str(turbomind._import_error or "")
    except PackageNotFoundError as error:
        found["error"] = f"{error.name} is not installed"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
