"""Install torch and torchvision as pinned in torch.txt: PyTorch's CPU build if its index answers, else pip's default.

    python requirements/install_torch.py [INDEX]

pip's default torch for x86-64 Linux is the CUDA build. The CPU index has the same versions with a local
version label (2.13.0+cpu), which pip prefers. The packages for chatting, which are installed first, include
everything that the CPU build requires.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWER_SECONDS = 5.0
LIST = Path(__file__).with_name("torch.txt")
PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--requirement", str(LIST))


def answers(index: str) -> bool:
    """Return whether the package index has torch and answers within `ANSWER_SECONDS`."""
    try:
        with urlopen(f"{index.rstrip('/')}/torch/", timeout=ANSWER_SECONDS):
            return True
    except (URLError, TimeoutError, ValueError) as error:
        sys.stdout.write(f"{index} does not answer ({error}).\n")
        return False


def default_is_cuda() -> bool:
    """Return whether pip's default torch requires CUDA's libraries."""
    report = subprocess.run(
        [*PIP, "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"],
        check=True,
        stdout=subprocess.PIPE,
    )
    requirements = (
        requirement
        for package in json.loads(report.stdout)["install"]
        for requirement in package["metadata"].get("requires_dist", [])
    )
    return any(requirement.startswith(("nvidia-", "cuda-")) for requirement in requirements)


def main(index: str) -> int:
    """Install torch and torchvision from `index` if it answers, otherwise from pip's default index.

    The choice is printed, and pip's exit code is returned.
    """
    if answers(index):
        sys.stdout.write(f"torch: the CPU build from {index} (0.2 GB to download).\n")
        return subprocess.call([*PIP, "--index-url", index])
    if default_is_cuda():
        sys.stdout.write(
            "torch: pip's default, the CUDA build (2.8 GB to download, 5.5 GB on disk). "
            "`make TORCH_INDEX=…` installs the CPU build from another index.\n"
        )
    else:
        sys.stdout.write("torch: pip's default, a CPU build (0.2 GB to download).\n")
    return subprocess.call(PIP)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else CPU_INDEX))
